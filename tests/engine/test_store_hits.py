"""Which prefix is a hit where KV groups keep different parts of it, against looking at them all."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from kvstore.core.layout import KVLayout
from model_runner.kv_groups import KVGroup
from model_runner.store_hits import MAX_CANDIDATES, longest_hit

BLOCK = 4


def window(num_blocks: int) -> KVGroup:
    """A group whose window shows so many blocks before a boundary."""
    group = KVGroup(KVLayout(1, 1, 2, BLOCK, "float32"), (0,), window_tokens=num_blocks * BLOCK + 1)
    assert group.window_blocks == num_blocks
    return group


def usable(groups: Sequence[KVGroup], there: Sequence[Sequence[bool]], end: int) -> bool:
    return all(
        all(present[group.first_block(end) : end])
        for group, present in zip(groups, there, strict=True)
    )


def found(groups: Sequence[KVGroup], there: Sequence[Sequence[bool]], num_leading: int) -> int:
    def num_trailing(group: int, end: int) -> int:
        backwards = list(there[group][groups[group].first_block(end) : end])[::-1]
        return backwards.index(False) if False in backwards else len(backwards)

    return longest_hit(groups, num_leading, num_trailing)


_presence = st.lists(st.booleans(), min_size=40, max_size=40)


@given(
    st.lists(st.tuples(st.integers(0, 5), _presence), max_size=3), st.integers(0, MAX_CANDIDATES)
)
def test_the_hit_is_the_longest_prefix_that_every_window_can_go_on_after(
    windows: list[tuple[int, list[bool]]], num_leading: int
) -> None:
    groups, there = [window(n) for n, _ in windows], [present for _, present in windows]
    longest = max(n for n in range(num_leading + 1) if usable(groups, there, n))
    assert found(groups, there, num_leading) == longest


@given(st.lists(st.tuples(st.integers(0, 5), _presence), max_size=3), st.integers(0, 40))
def test_after_so_many_candidates_it_is_a_miss(
    windows: list[tuple[int, list[bool]]], num_leading: int
) -> None:
    groups, there = [window(n) for n, _ in windows], [present for _, present in windows]
    longest = max(n for n in range(num_leading + 1) if usable(groups, there, n))
    assert found(groups, there, num_leading) in (0, longest)


def test_a_hole_in_a_window_is_jumped_over_at_once() -> None:
    there = [True] * 30 + [False] + [True] * 9
    asked: list[int] = []

    def num_trailing(group: int, end: int) -> int:
        asked.append(end)
        return 9 if end == 40 else 12

    assert found([window(12)], [there], 40) == 30
    assert longest_hit([window(12)], 40, num_trailing) == 30
    assert asked == [40, 30]

"""Block tables of several KV groups: what is a hit, what is held, and what is given back."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.core.ids import BlockHash, RequestId
from kvstore.tiers.base import TierKind
from kvstore.tiers.device.pool import BlockPool
from model_runner.engine_blocks import BlockTables
from model_runner.group_blocks import GroupBlocks, longest_hit
from model_runner.kv_groups import BlockTable, KVGroup
from model_runner.testing import window_group
from model_runner.types import Request, SamplingParams

BLOCK = 4
HASHES = [BlockHash(bytes([i]) * 32) for i in range(12)]

_windows = st.lists(st.none() | st.integers(1, 30), min_size=1, max_size=3, unique=True)


def seen_blocks(window: int | None, position: int) -> set[int]:
    """Of the tokens before `position`, those in whose sight it is: token by token."""
    first = 0 if window is None else position - window + 1
    return {token // BLOCK for token in range(max(0, first), position)}


@given(st.none() | st.integers(1, 30), st.integers(0, 12))
def test_a_window_shows_these_blocks_and_no_others(window: int | None, num_blocks: int) -> None:
    group = window_group(window, BLOCK)
    seen = seen_blocks(window, num_blocks * BLOCK)
    assert set(range(group.first_block(num_blocks), num_blocks)) == seen
    assert group.first_seen(num_blocks * BLOCK) == group.first_block(num_blocks)


@given(st.none() | st.integers(1, 30), st.integers(0, 50))
def test_what_a_token_sees_begins_with_its_first_block(window: int | None, position: int) -> None:
    seen = seen_blocks(window, position) | {position // BLOCK}
    assert window_group(window, BLOCK).first_seen(position) == min(seen)


@given(_windows, st.lists(st.sets(st.integers(0, 11)), min_size=3, max_size=3), st.integers(0, 12))
def test_a_hit_is_the_longest_prefix_that_all_groups_can_go_on_after(
    windows: list[int | None], present: list[set[int]], limit: int
) -> None:
    groups = [window_group(window, BLOCK) for window in windows]
    pools = [_pool_with(blocks) for blocks, _ in zip(present, groups, strict=False)]
    parts = [GroupBlocks(i, *both) for i, both in enumerate(zip(groups, pools, strict=True))]
    expected = max(
        n
        for n in range(limit + 1)
        if all(
            seen_blocks(window, n * BLOCK) <= there
            for window, there in zip(windows, present, strict=False)
        )
    )
    assert longest_hit(parts, HASHES, limit) == expected


def _pool_with(blocks: set[int]) -> BlockPool:
    pool = BlockPool(20)
    held = pool.allocate(len(blocks))
    pool.name(held, [HASHES[i] for i in sorted(blocks)])
    pool.release(held)
    return pool


def request(num_tokens: int, name: str = "r", max_tokens: int = 8) -> Request:
    return Request(
        RequestId(name),
        list(range(num_tokens)),
        num_tokens,
        SamplingParams(max_tokens=max_tokens),
        identity_root=bytes(32),
    )


class Device:
    """Block tables with their pools."""

    def __init__(self, windows: Sequence[int | None], num_blocks: Sequence[int]) -> None:
        self.groups: Sequence[KVGroup] = [window_group(window, BLOCK) for window in windows]
        self.pools = [BlockPool(count) for count in num_blocks]
        self.blocks = BlockTables(self.groups, self.pools, asks_store=True)

    def compute(self, request: Request, num_tokens: int) -> None:
        assert self.blocks.extend(request, num_tokens) == num_tokens
        request.num_computed += num_tokens
        self.blocks.give_back(self.blocks.complete(request))

    def spans(self, request: Request) -> list[tuple[int, int]]:
        return [(table.first, table.end) for table in request.block_tables]

    @property
    def all_free(self) -> bool:
        return all(pool.num_free == pool.num_blocks for pool in self.pools)


def test_what_leaves_the_window_is_given_back_and_still_found() -> None:
    device = Device([None, 9], [8, 5])  # 9 tokens: two whole blocks before a boundary
    one = request(30)
    assert device.blocks.admit(one)
    assert device.spans(one) == [(0, 8), (0, 3)]
    device.blocks.loaded(one, [])
    device.compute(one, 12)
    assert device.spans(one) == [(0, 8), (1, 3)]
    device.compute(one, 6)
    assert device.spans(one) == [(0, 8), (2, 5)]
    assert device.pools[1].num_free == 2, "blocks 0 and 1: free to be used, and cached until then"
    assert all(h in device.pools[1] for h in one.block_hashes[:4])
    device.compute(one, 10)
    assert one.block_hashes[0] not in device.pools[1], "its memory is another's"
    assert one.block_hashes[0] in device.pools[0]
    device.blocks.release(one)
    assert device.all_free


def test_a_long_prompt_drives_no_end_of_another_out() -> None:
    """After which its next turn goes on; what has left its own window goes first."""
    device = Device([9], [8])
    first, long = request(20, "first"), request(400, "long")
    long.token_ids = [7] * 400
    for one in (first, long):
        assert device.blocks.admit(one)
        device.blocks.loaded(one, [])
        while one.num_uncomputed:
            device.compute(one, min(4, one.num_uncomputed))
        device.blocks.release(one)
    turn = request(24, "turn")
    assert device.blocks.admit(turn)
    assert turn.num_computed == 20


def test_blocks_on_their_way_to_the_store_are_no_room() -> None:
    device = Device([5], [3])
    one = request(20)
    assert device.blocks.admit(one)
    device.blocks.loaded(one, [])
    assert device.blocks.extend(one, 20) == 12
    one.num_computed = 12
    runs = device.blocks.complete(one)
    assert [list(run.hashes) for run in runs] == [one.block_hashes[:3]]
    assert device.blocks.extend(one, 8) == 0
    device.blocks.give_back(runs)
    assert device.blocks.extend(one, 8) == 8
    device.blocks.release(one)
    assert device.all_free


@pytest.mark.parametrize(
    ("num_loaded", "span"), [(0, (3, 8)), (1, (4, 8)), (3, (6, 9)), (4, (7, 10))]
)
def test_the_store_fills_the_end_of_its_hit(num_loaded: int, span: tuple[int, int]) -> None:
    """Five blocks are on the device. Two are in sight at a time, and three are given on admission:
    a long hit goes into the first two of these, a short one behind what the device has."""
    device = Device([None, 9], [12, 12])
    first = request(21, "first")
    assert device.blocks.admit(first)
    device.blocks.loaded(first, [])
    device.compute(first, 20)
    device.blocks.release(first)
    one = request(41)
    assert device.blocks.admit(one)
    assert device.spans(one) == [(0, 11), (3, 8)]
    wanted = device.blocks.wanted(one)
    assert (wanted.first_block, len(wanted.hashes)) == (5, 5)
    assert [len(ids) for ids in wanted.block_ids] == [5, 2]
    targets = list(wanted.block_ids[1])
    device.blocks.loaded(one, [TierKind.HOST] * num_loaded)
    assert device.spans(one)[1] == span
    hashes = one.block_hashes[: 5 + num_loaded]
    assert one.num_named == len(hashes)
    came = hashes[5:][-2:]
    found = device.pools[1].match(came)
    assert found == targets[: len(came)]
    device.pools[1].release(found)
    device.blocks.release(one)
    assert device.all_free


def test_a_preempted_request_leaves_what_its_groups_hold() -> None:
    device = Device([None, 5], [8, 8])
    one = request(24)
    assert device.blocks.admit(one)
    device.blocks.loaded(one, [])
    device.compute(one, 18)
    device.blocks.preempt(one)
    (runs,) = device.blocks.take_preempted()
    assert [list(run.hashes) for run in runs] == [one.block_hashes[:4], one.block_hashes[3:4]]
    assert device.blocks.num_leaving == 5
    device.blocks.left(runs)
    assert device.all_free
    assert device.blocks.admit(one)
    assert one.num_computed == 16
    device.blocks.loaded(one, [])
    device.blocks.release(one)


def test_a_sequence_as_long_as_it_likes_needs_its_hits_and_as_much_again() -> None:
    group = window_group(9, BLOCK)
    assert group.room_tokens(5) is None
    assert group.room_tokens(4) == 16
    assert window_group(None, BLOCK).room_tokens(5) == 20
    device = Device([9], [5])
    one = request(120)
    assert device.blocks.admit(one)
    device.blocks.loaded(one, [])
    while one.num_uncomputed:
        device.compute(one, min(3, one.num_uncomputed))
    device.blocks.release(one)
    again = request(120, "again")
    assert device.blocks.admit(again)
    assert again.num_computed == 116
    device.blocks.release(again)
    assert device.all_free


def test_an_admission_that_one_group_refuses_changes_no_group() -> None:
    device = Device([None, 9], [20, 5])
    one, other = request(40, "one"), request(40, "other")
    other.token_ids = [7] * 40
    assert device.blocks.admit(one)
    assert not device.blocks.admit(other)
    assert other.block_tables == []
    assert [pool.num_free for pool in device.pools] == [10, 2]


@given(st.integers(0, 5), st.integers(0, 12), st.integers(0, 14))
def test_a_table_keeps_what_it_does_not_drop(first: int, count: int, before: int) -> None:
    table = BlockTable(list(range(100 + first, 100 + first + count)), first)
    dropped = table.drop_before(before)
    assert [*dropped, *table.block_ids] == list(range(100 + first, 100 + first + count))
    assert table.first == min(max(first, before), first + count)
    assert table.part(table.first, table.end) == table.block_ids


def test_growth_stops_where_the_window_is_full() -> None:
    blocks = GroupBlocks(0, window_group(9, BLOCK), BlockPool(4))
    assert [blocks.growth(n, 10) for n in (1, 3, 8)] == [2, 0, 0]
    full = GroupBlocks(0, window_group(None, BLOCK), BlockPool(4))
    assert full.growth(3, 10) == 7

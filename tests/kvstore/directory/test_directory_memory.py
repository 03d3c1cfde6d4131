"""The embedded directory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.core.ids import BlockHash, BlockKey, BlockKeys, LayoutFingerprint, MemberId
from kvstore.directory.base import Directory, Replica
from kvstore.directory.memory import MemoryDirectory
from kvstore.directory.state import DirectoryState
from kvstore.testing.directory_conformance import DirectoryConformance
from kvstore.tiers.base import TierKind

LAYOUT = LayoutFingerprint(b"l" * 16)


class TestMemoryDirectory(DirectoryConformance):
    @pytest.fixture
    def directory(self) -> Directory:
        return MemoryDirectory()


publishers = st.sampled_from([MemberId("a"), MemberId("b")])
tiers = st.sampled_from([TierKind.DEVICE, TierKind.HOST, TierKind.DISK])
batches = st.lists(st.integers(0, 7), max_size=6)
operations = st.lists(
    st.tuples(
        st.sampled_from(["stored", "removed", "cleared", "forget", "sweep"]),
        publishers,
        tiers,
        batches,
    )
)


def keys(numbers: list[int]) -> BlockKeys:
    return BlockKeys(LAYOUT, [BlockHash(bytes([n]) * 32) for n in numbers])


@given(operations)
def test_state_equals_a_plain_set(
    script: list[tuple[str, MemberId, TierKind, list[int]]],
) -> None:
    state = DirectoryState()
    truth: set[tuple[BlockKey, Replica]] = set()
    for verb, publisher, tier, numbers in script:
        replica = Replica(publisher, tier)
        batch = {(key, replica) for key in keys(numbers)}
        match verb:
            case "stored":
                state.stored(publisher, tier, keys(numbers))
                truth |= batch
            case "removed":
                state.removed(publisher, tier, keys(numbers))
                truth -= batch
            case "cleared":
                state.cleared(publisher, tier)
                truth = {pair for pair in truth if pair[1] != replica}
            case "forget":
                state.forget(publisher)
                truth = {pair for pair in truth if pair[1].publisher != publisher}
            case _:
                state.sweep(max_blocks=1 + len(numbers))
        every = keys(list(range(8)))
        located = state.locate(every)
        assert {(k, r) for k, rs in zip(every, located, strict=True) for r in rs} == truth
        assert len(state) >= len({key for key, _ in truth})
        holes = [i for i, replicas in enumerate(located) if not replicas]
        assert state.longest_prefix(every) == (holes[0] if holes else 8)
    while state.sweep(max_blocks=3):
        pass
    assert len(state) == len({key for key, _ in truth})


def test_a_sweep_goes_in_steps_and_frees_all() -> None:
    state = DirectoryState()
    many = BlockKeys(LAYOUT, [BlockHash(n.to_bytes(32, "big")) for n in range(100)])
    state.stored(MemberId("a"), TierKind.HOST, many)
    state.stored(MemberId("b"), TierKind.HOST, many[:10])
    state.forget(MemberId("a"))
    assert len(state) == 100
    assert state.longest_prefix(many) == 10, "forgotten at once"
    assert [state.sweep(max_blocks=30) for _ in range(4)] == [True, True, True, False]
    assert len(state) == 10
    assert not state.sweep(max_blocks=30)


def test_bits_are_used_again_after_the_sweep_only() -> None:
    state = DirectoryState()
    (one, two) = keys([1]), keys([2])
    state.stored(MemberId("a"), TierKind.HOST, one)
    for n in range(200):
        state.forget(MemberId("a"))
        state.stored(MemberId("a"), TierKind.HOST, two)
        assert state.locate(keys([1, 2])) == [(), (Replica(MemberId("a"), TierKind.HOST),)]
        if n % 10 == 9:
            while state.sweep(max_blocks=100):
                pass
            assert len(state) == 1
    assert state._live.bit_length() <= 12, "a directory that lives long keeps small masks"

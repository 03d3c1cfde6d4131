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
        st.sampled_from(["stored", "removed", "cleared", "forget"]), publishers, tiers, batches
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
            case _:
                state.forget(publisher)
                truth = {pair for pair in truth if pair[1].publisher != publisher}
        every = keys(list(range(8)))
        located = state.locate(every)
        assert {(k, r) for k, rs in zip(every, located, strict=True) for r in rs} == truth
        assert len(state) == len({key for key, _ in truth})
        holes = [i for i, replicas in enumerate(located) if not replicas]
        assert state.longest_prefix(every) == (holes[0] if holes else 8)

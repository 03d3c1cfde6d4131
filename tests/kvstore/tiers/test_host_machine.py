"""The host tier against a dictionary: random lives of blocks, with the bytes checked throughout."""

import tempfile
from collections import Counter
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvstore.core.checksum import checksum
from kvstore.core.ids import BlockKey
from kvstore.eviction.lru import LRU
from kvstore.testing.tier_conformance import LAYOUT, numbered_key
from kvstore.tiers.base import ReserveOutcome, Resident, Slot
from kvstore.tiers.host.arena import Arena
from kvstore.tiers.host.tier import HostTier

UNIT = 4096
BATCH = st.lists(st.integers(0, 15).map(numbered_key), min_size=1, max_size=5)
LENGTHS = st.sampled_from([UNIT, 2 * UNIT, 4 * UNIT, 1000])


def content(key: BlockKey, slot: Slot) -> bytes:
    """Differs from life to life."""
    return key.hash[-1:] + slot.generation.to_bytes(8, "little") + key.hash


class HostMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.tier = HostTier(
            Arena(Path(self.folder.name), 16 * UNIT),
            LRU(),
            high_watermark=0.6,
            low_watermark=0.3,
            slab_bytes=4 * UNIT,
        )
        self.pending: dict[BlockKey, Slot] = {}
        self.resident: dict[BlockKey, Slot] = {}
        self.held: Counter[BlockKey] = Counter()
        self.condemned: dict[BlockKey, Slot] = {}
        self.ended: dict[int, int] = {}

    def gone(self, slot: Slot) -> None:
        self.ended[slot.offset] = slot.generation

    def evict(self, keys: list[BlockKey]) -> None:
        for key in keys:
            assert not self.held[key]
            self.gone(self.resident.pop(key))

    @rule(keys=BATCH, length=LENGTHS)
    def reserve(self, keys: list[BlockKey], length: int) -> None:
        before = set(self.resident)
        reserved = self.tier.reserve(keys, length)
        self.evict(list(reserved.evicted))
        slots = iter(reserved.slots)
        for key, outcome in zip(keys, reserved.outcomes, strict=True):
            if outcome is ReserveOutcome.RESERVED:
                slot = next(slots)
                assert slot.generation > self.ended.get(slot.offset, -1)
                self.pending[key] = slot
                self.tier.view(slot)[: len(content(key, slot))] = content(key, slot)
            elif outcome is ReserveOutcome.EXISTS:
                assert key in before
            elif outcome is ReserveOutcome.PENDING:
                assert key in self.pending or key in self.condemned
            else:
                assert key not in self.resident
        assert next(slots, None) is None

    @precondition(lambda self: self.pending)
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        keys = data.draw(st.lists(st.sampled_from(list(self.pending)), max_size=3, unique=True))
        slots = [self.pending.pop(key) for key in keys]
        parts = [content(key, slot) for key, slot in zip(keys, slots, strict=True)]
        self.tier.commit(keys, [len(part) for part in parts], [checksum(p) for p in parts])
        self.resident |= dict(zip(keys, slots, strict=True))

    @precondition(lambda self: self.pending)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(list(self.pending)))
        self.tier.abort([key])
        self.gone(self.pending.pop(key))

    @rule(keys=BATCH)
    def acquire(self, keys: list[BlockKey]) -> None:
        found = self.tier.acquire(keys)
        for key, resident in zip(keys, found, strict=True):
            assert (resident is not None) == (key in self.resident)
            if resident is not None:
                self.held[key] += 1
                self.check(key, resident)

    def check(self, key: BlockKey, resident: Resident) -> None:
        slot = self.resident[key]
        assert (resident.slot.offset, resident.slot.generation) == (slot.offset, slot.generation)
        assert bytes(self.tier.view(resident.slot)) == content(key, slot)

    @precondition(lambda self: self.held.total())
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(+self.held, key=lambda k: k.hash)))
        self.tier.release([key])
        self.held[key] -= 1
        if key in self.condemned and not self.held[key]:
            self.gone(self.condemned.pop(key))

    @rule(keys=BATCH)
    def drop(self, keys: list[BlockKey]) -> None:
        dropped = self.tier.drop(keys)
        assert set(dropped) == set(keys) & set(self.resident)
        for key in dropped:
            slot = self.resident.pop(key)
            if self.held[key]:
                self.condemned[key] = slot
            else:
                self.gone(slot)

    @rule()
    def evict_to_low_watermark(self) -> None:
        over = self.tier.statistics().used_bytes > 0.6 * 16 * UNIT
        evicted = self.tier.evict_to_low_watermark()
        assert over or not evicted
        self.evict(evicted)
        if over and self.tier.statistics().used_bytes > 0.3 * 16 * UNIT:
            assert all(self.held[key] for key in self.resident)

    @invariant()
    def bytes_in_use_are_untouched(self) -> None:
        """A reader of any live slot, held after its drop or not, finds its bytes and generation."""
        for key, slot in (self.pending | self.resident | self.condemned).items():
            assert self.tier.arena.generation(slot.offset) == slot.generation
            expected = content(key, slot)
            assert bytes(self.tier.view(slot)[: len(expected)]) == expected

    @invariant()
    def ended_lives_can_be_told(self) -> None:
        for offset, generation in self.ended.items():
            assert self.tier.arena.generation(offset) > generation

    @invariant()
    def inventory_is_what_is_resident(self) -> None:
        assert {info.key for info in self.tier.inventory()} == set(self.resident)
        assert all(self.tier.pending(key) for key in self.pending)
        statistics = self.tier.statistics()
        assert statistics.used_bytes <= statistics.capacity_bytes

    @invariant()
    def books_are_those_of_the_model(self) -> None:
        live = self.pending | self.resident | self.condemned
        used_bytes = self.tier.statistics().used_bytes
        assert used_bytes == sum(self.tier.slot_bytes(slot) for slot in live.values())
        assert self.tier.bytes_of(LAYOUT) == used_bytes
        assert len(self.tier._blocks.rows) == len(live)
        for key, slot in self.resident.items():
            info = self.tier.info(key)
            assert info is not None
            assert info.length_bytes == len(content(key, slot))
            assert info.checksum == checksum(content(key, slot))

    @rule(keys=BATCH, priority=st.sampled_from([0, 35, 80]))
    def retain(self, keys: list[BlockKey], priority: int) -> None:
        here = self.tier.retain(keys, priority, None)
        assert here == [key for key in keys if key in self.resident]

    @rule(blocks=st.integers(0, 3))
    def evict_within(self, blocks: int) -> None:
        used_bytes = self.tier.statistics().used_bytes
        evicted = self.tier.evict_within([LAYOUT], blocks * UNIT)
        self.evict(evicted)
        if used_bytes - self.tier.statistics().used_bytes < blocks * UNIT:
            assert all(self.held[key] for key in self.resident)

    def teardown(self) -> None:
        self.tier.close()
        self.folder.cleanup()


TestHostMachine = HostMachine.TestCase
TestHostMachine.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvstore.core.checksum import checksum
from kvstore.core.errors import InvalidArgumentError
from kvstore.core.ids import BlockKey
from kvstore.eviction.lru import LRU
from kvstore.testing.tier_conformance import load_one, numbered_block, numbered_key
from kvstore.tiers.base import MissReason, ReserveOutcome, Slot
from kvstore.tiers.host.arena import Arena
from kvstore.tiers.host.tier import HostTier

RESERVED, EXISTS = ReserveOutcome.RESERVED, ReserveOutcome.EXISTS
PENDING, NO_SPACE = ReserveOutcome.PENDING, ReserveOutcome.NO_SPACE
UNIT = 4096
SLOTS = 16


@pytest.fixture
def tier(tmp_path: Path) -> Iterator[HostTier]:
    """Four slabs of four units each."""
    tier = HostTier(
        Arena(tmp_path, SLOTS * UNIT),
        LRU(),
        high_watermark=0.75,
        low_watermark=0.5,
        slab_bytes=4 * UNIT,
    )
    yield tier
    tier.close()


def keys(*numbers: int) -> list[BlockKey]:
    return [numbered_key(number) for number in numbers]


def put(tier: HostTier, *numbers: int, length: int = UNIT) -> list[BlockKey]:
    """Store blocks one chain at a time; returns what was evicted."""
    result = tier.store([numbered_block(number, length) for number in numbers])
    assert list(result.stored) == keys(*numbers)
    return list(result.evicted)


def test_a_block_is_visible_only_after_commit(tier: HostTier) -> None:
    (key,) = keys(1)
    reserved = tier.reserve([key], UNIT)
    assert list(reserved.outcomes) == [RESERVED]
    (slot,) = reserved.slots
    tier.view(slot)[:5] = b"bytes"
    assert tier.pending(key)
    assert key not in tier
    assert tier.acquire([key]) == [None]
    assert tier.inventory() == []
    assert tier.load([key], [memoryview(bytearray(UNIT))]) == [MissReason.PENDING]
    assert tier.drop([key]) == []
    tier.commit([key], [5], [checksum(b"bytes")])
    assert not tier.pending(key)
    (resident,) = tier.acquire([key])
    assert resident is not None
    assert resident.slot == Slot(slot.offset, 5, slot.generation)
    assert bytes(tier.view(resident.slot)) == b"bytes"
    tier.release([key])


def test_reserve_tells_what_is_there_and_what_is_being_written(tier: HostTier) -> None:
    put(tier, 1)
    first = tier.reserve(keys(1, 2, 2), UNIT)
    assert list(first.outcomes) == [EXISTS, RESERVED, PENDING]
    assert len(first.slots) == 1
    second = tier.reserve(keys(2, 3), UNIT)
    assert list(second.outcomes) == [PENDING, RESERVED]


def test_abort_gives_the_memory_back_under_a_new_generation(tier: HostTier) -> None:
    reserved = tier.reserve(keys(*range(SLOTS)), UNIT)
    assert list(reserved.outcomes) == [RESERVED] * SLOTS
    tier.abort(keys(*range(SLOTS)))
    assert tier.statistics().used_bytes == 0
    for slot in reserved.slots:
        assert tier.arena.generation(slot.offset) == slot.generation + 1
    again = tier.reserve(keys(*range(SLOTS)), UNIT)
    assert {s.offset for s in again.slots} == {s.offset for s in reserved.slots}
    assert not set(again.slots) & set(reserved.slots)


def test_the_generation_rises_before_a_slot_is_reused(tier: HostTier) -> None:
    put(tier, *range(SLOTS))
    (resident,) = tier.acquire(keys(0))
    tier.release(keys(0))
    assert resident is not None
    reader = Arena.attach(tier.arena.path)
    assert reader.generation(resident.slot.offset) == resident.slot.generation
    tier.drop(keys(0))
    assert reader.generation(resident.slot.offset) == resident.slot.generation + 1
    reader.close()


def test_pending_blocks_are_never_evicted(tier: HostTier) -> None:
    tier.reserve(keys(*range(SLOTS - 1)), UNIT)
    put(tier, 100)
    reserved = tier.reserve(keys(200, 201), UNIT)
    assert list(reserved.outcomes) == [RESERVED, NO_SPACE]
    assert list(reserved.evicted) == keys(100)
    tier.commit(keys(*range(SLOTS - 1)), [UNIT] * (SLOTS - 1), [0] * (SLOTS - 1))


def test_acquired_blocks_are_never_evicted(tier: HostTier) -> None:
    put(tier, *range(SLOTS))
    tier.acquire(keys(*range(SLOTS)))
    tier.acquire(keys(3))
    tier.release(keys(2, 3))
    reserved = tier.reserve(keys(100, 101), UNIT)
    assert list(reserved.outcomes) == [RESERVED, NO_SPACE]
    assert list(reserved.evicted) == keys(2), "3 was acquired twice"
    tier.release(keys(3))
    assert list(tier.reserve(keys(101), UNIT).evicted) == keys(3)


def test_a_batch_does_not_evict_its_own_head(tier: HostTier) -> None:
    put(tier, *range(SLOTS))
    batch = keys(*range(SLOTS), 100)
    assert list(tier.reserve(batch, UNIT).outcomes) == [EXISTS] * SLOTS + [NO_SPACE]
    assert tier.statistics().evictions == 0


def test_least_recently_used_chains_lose_their_tails_first(tier: HostTier) -> None:
    put(tier, *range(8))
    put(tier, *range(8, 16))
    tier.acquire(keys(*range(8)))
    tier.release(keys(*range(8)))
    assert put(tier, 100, 101, 102) == keys(15, 14, 13)


def test_a_dropped_block_stays_in_memory_while_it_is_acquired(tier: HostTier) -> None:
    put(tier, 1)
    (resident,) = tier.acquire(keys(1))
    assert resident is not None
    assert tier.drop(keys(1)) == keys(1)
    assert numbered_key(1) not in tier
    assert tier.acquire(keys(1)) == [None]
    assert tier.inventory() == []
    assert list(tier.reserve(keys(1), UNIT).outcomes) == [PENDING]
    assert tier.view(resident.slot) == numbered_block(1, UNIT).data
    assert tier.arena.generation(resident.slot.offset) == resident.slot.generation
    tier.release(keys(1))
    assert tier.arena.generation(resident.slot.offset) != resident.slot.generation
    assert tier.statistics().used_bytes == 0
    assert list(tier.reserve(keys(1), UNIT).outcomes) == [RESERVED]


def test_eviction_to_the_low_watermark(tier: HostTier) -> None:
    put(tier, *range(12))
    assert tier.evict_to_low_watermark() == [], "75 % is not above the high watermark"
    put(tier, 12)
    evicted = tier.evict_to_low_watermark()
    assert evicted == keys(11, 10, 9, 8, 7)
    assert tier.statistics().used_bytes == SLOTS * UNIT // 2
    assert tier.evict_to_low_watermark() == []


def test_eviction_to_the_low_watermark_passes_over_what_is_in_use(tier: HostTier) -> None:
    put(tier, *range(SLOTS))
    tier.acquire(keys(*range(1, SLOTS)))
    assert tier.evict_to_low_watermark() == keys(0)


def test_a_class_takes_over_the_slabs_of_another(tier: HostTier) -> None:
    put(tier, *range(SLOTS))
    assert len(put(tier, 100, length=2 * UNIT)) == 4, "one slab, not more"
    put(tier, 101, length=2 * UNIT)
    assert len(put(tier, 102, length=4 * UNIT)) == 4
    for number in range(103, 106):
        put(tier, number, length=4 * UNIT)
    assert {info.length_bytes for info in tier.inventory()} == {4 * UNIT}
    assert len(put(tier, 200)) == 1
    assert load_one(tier, numbered_block(200, UNIT))[0] is None


def test_pinned_slabs_cost_a_bounded_number_of_blocks(tmp_path: Path) -> None:
    """Every slab holds one acquired block: no slab can be emptied, and the cache is not burnt."""
    tier = HostTier(Arena(tmp_path, 256 * UNIT), LRU(), slab_bytes=4 * UNIT)
    reserved = tier.reserve(keys(*range(256)), UNIT)
    tier.commit(keys(*range(256)), [UNIT] * 256, [0] * 256)
    first_of_slab = [
        key
        for key, slot in zip(keys(*range(256)), reserved.slots, strict=True)
        if (slot.offset - tier.arena.data_offset) % (4 * UNIT) == 0
    ]
    tier.acquire(first_of_slab)
    result = tier.reserve(keys(1000), 4 * UNIT)
    assert list(result.outcomes) == [NO_SPACE]
    assert 0 < len(result.evicted) <= 16
    tier.release(first_of_slab)
    assert list(tier.reserve(keys(1000), 4 * UNIT).outcomes) == [RESERVED]
    tier.close()


def test_a_block_larger_than_a_slab_is_refused(tier: HostTier) -> None:
    assert tier.block_bytes_max == 4 * UNIT
    with pytest.raises(InvalidArgumentError, match="does not fit in a slab"):
        tier.reserve(keys(1), 4 * UNIT + 1)


def test_misuse_is_a_programmer_error(tier: HostTier) -> None:
    put(tier, 1)
    with pytest.raises(AssertionError, match="more often"):
        tier.release(keys(1))
    tier.reserve(keys(2), UNIT)
    with pytest.raises(AssertionError):
        tier.commit(keys(2), [UNIT + 1], [0])
    with pytest.raises(AssertionError):
        HostTier(tier.arena, LRU(), high_watermark=0.5, low_watermark=0.6)


def test_representation_names_blocks_and_arena(tier: HostTier) -> None:
    put(tier, 1)
    assert repr(tier).startswith("HostTier(1 blocks, SlabAllocator(4096/65536 bytes, 3 free")
    assert str(tier.arena.path) in repr(tier)


def test_close_removes_the_arena(tmp_path: Path) -> None:
    tier = HostTier(Arena(tmp_path, SLOTS * UNIT), LRU())
    put(tier, 1)
    tier.close()
    tier.close()
    assert list(tmp_path.iterdir()) == []

"""Which blocks the host tier holds, where, and who uses them. No lock, no byte of a block."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kvstore.core.ids import BlockKey
from kvstore.eviction.base import EvictionPolicy
from kvstore.tiers.base import BlockInfo, Resident, Slot
from kvstore.tiers.host.allocator import SlabAllocator
from kvstore.tiers.host.arena import Arena


@dataclass(slots=True)
class Entry:
    """A committed block. Dropped ones stay until their last reference is given back."""

    resident: Resident
    references: int = 0
    dropped: bool = False


class HostBlocks:
    """The books of a host tier. Not thread-safe: every call is under the tier's lock.

    A key is pending, or has an entry, or neither; never both. The policy knows just the keys of
    entries that are not dropped.
    """

    def __init__(
        self, arena: Arena, policy: EvictionPolicy[BlockKey], slab_bytes: int | None
    ) -> None:
        self.allocator = SlabAllocator[BlockKey](arena.capacity_bytes, slab_bytes)
        self.policy = policy
        self.entries: dict[BlockKey, Entry] = {}
        self.pending: dict[BlockKey, Slot] = {}
        self.hits = 0
        self.evictions = 0
        self._arena = arena

    def allocate(self, key: BlockKey, block_bytes: int) -> Slot | None:
        """Make `key` pending; None if there is no room."""
        offset = self.allocator.allocate(block_bytes, key)
        if offset is None:
            return None
        offset += self._arena.data_offset
        slot = Slot(offset, block_bytes, self._arena.generation(offset))
        self.pending[key] = slot
        return slot

    def commit(self, keys: Sequence[BlockKey], lengths: Sequence[int], crcs: Sequence[int]) -> None:
        for key, length, crc in zip(keys, lengths, crcs, strict=True):
            slot = self.pending[key]
            assert 0 < length <= slot.length_bytes
            if length < slot.length_bytes:
                slot = Slot(slot.offset, length, slot.generation)
            self.entries[key] = Entry(Resident(slot, crc))
            del self.pending[key]
        self.policy.insert(keys)

    def abort(self, keys: Iterable[BlockKey]) -> None:
        for key in keys:
            self._free(self.pending.pop(key))

    def acquire(self, key: BlockKey) -> Resident | None:
        entry = self.visible(key)
        if entry is None:
            return None
        entry.references += 1
        self.hits += 1
        return entry.resident

    def release(self, key: BlockKey) -> None:
        entry = self.entries[key]
        assert entry.references > 0, "released more often than acquired"
        entry.references -= 1
        if entry.dropped and entry.references == 0:
            self._remove(key)

    def drop(self, key: BlockKey) -> bool:
        """Whether it was here."""
        entry = self.visible(key)
        if entry is None:
            return False
        self.policy.remove([key])
        entry.dropped = True
        if entry.references == 0:
            self._remove(key)
        return True

    def evict(self, key: BlockKey) -> None:
        """Remove a block that the policy gave up already."""
        assert self.evictable(key)
        self._remove(key)
        self.evictions += 1

    def evictable(self, key: BlockKey) -> bool:
        entry = self.entries.get(key)
        return entry is not None and entry.references == 0

    def visible(self, key: BlockKey) -> Entry | None:
        entry = self.entries.get(key)
        return None if entry is None or entry.dropped else entry

    def info(self, key: BlockKey) -> BlockInfo | None:
        entry = self.visible(key)
        if entry is None:
            return None
        return BlockInfo(key, entry.resident.slot.length_bytes, entry.resident.checksum)

    def same_class(self, key: BlockKey, block_bytes: int) -> bool:
        """Whether the slot of a resident block would do for one of `block_bytes`."""
        return self.allocator.same_class(self._offset(key), block_bytes)

    def neighbours(self, key: BlockKey) -> list[BlockKey]:
        """All blocks in the slab of a resident one, itself and pending ones included."""
        return self.allocator.neighbours(self._offset(key))

    def _offset(self, key: BlockKey) -> int:
        return self.entries[key].resident.slot.offset - self._arena.data_offset

    def _remove(self, key: BlockKey) -> None:
        self._free(self.entries.pop(key).resident.slot)

    def _free(self, slot: Slot) -> None:
        """The generation goes up before the memory can get another use."""
        self._arena.bump_generation(slot.offset)
        self.allocator.free(slot.offset - self._arena.data_offset)

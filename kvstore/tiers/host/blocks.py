"""Which blocks the host tier holds, where, and who uses them. No lock, no byte of a block."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from kvstore.core.ids import BlockKey, LayoutFingerprint
from kvstore.core.ports import Clock
from kvstore.eviction.base import EvictionPolicy
from kvstore.eviction.retention import Retention
from kvstore.tiers.base import BlockInfo, Resident, Slot
from kvstore.tiers.host.allocator import SlabAllocator
from kvstore.tiers.host.arena import Arena
from kvstore.tiers.host.rows import SlotRows


class HostBlocks:
    """The books of a host tier. Not thread-safe: every call is under the tier's lock.

    A key is pending, resident, or dropped (gone for all but those who still hold it), or unknown.
    The policy knows just the resident keys. A slot that was set aside has no key any more.
    """

    def __init__(
        self,
        arena: Arena,
        policy: EvictionPolicy[BlockKey],
        slab_bytes: int | None,
        clock: Clock,
    ) -> None:
        self.allocator = SlabAllocator[int](arena.capacity_bytes, slab_bytes)
        """Slots are owned by rows."""
        self.rows = SlotRows()
        self.resident: dict[BlockKey, int] = {}
        self.pending: dict[BlockKey, int] = {}
        self.dropped: dict[BlockKey, int] = {}
        """Row of each, by key."""
        self.aside = set[int]()
        """Rows whose key is free for another slot, while their memory waits for all who may touch
        it; their generation is raised already."""
        self.policy = Retention(policy, clock, self.resident.__contains__)
        self.guard: Callable[[BlockKey], bool] = nothing_guarded
        self.bytes_of: defaultdict[LayoutFingerprint, int] = defaultdict(int)
        self.hits = 0
        self.evictions = 0
        self._arena = arena

    def allocate(self, key: BlockKey, block_bytes: int) -> Slot | None:
        """Make `key` pending; None if there is no room."""
        row = self.rows.next()
        offset = self.allocator.allocate(block_bytes, row)
        if offset is None:
            return None
        offset += self._arena.data_offset
        slot = Slot(offset, block_bytes, self._arena.generation(offset))
        self.rows.add(key, slot)
        self.bytes_of[key.layout] += self.allocator.slot_bytes(block_bytes)
        self.pending[key] = row
        return slot

    def commit(self, keys: Sequence[BlockKey], lengths: Sequence[int], crcs: Sequence[int]) -> None:
        own = []
        for key, length, crc in zip(keys, lengths, crcs, strict=True):
            row = self.pending[key]
            self.rows.commit(row, length, crc)
            del self.pending[key]
            own.append(self.rows.keys[row])
            self.resident[own[-1]] = row
        self.policy.insert(own)

    def abort(self, keys: Iterable[BlockKey]) -> None:
        """The writer will not write any more. Slots that are read are set aside."""
        for key in keys:
            row = self.pending[key]
            if self.rows.references[row]:
                self.set_aside(key, 0)
            else:
                del self.pending[key]
                self._free(row)

    def set_aside(self, key: BlockKey, writers: int) -> Slot:
        """End the life of a pending slot that its readers and `writers` may still touch."""
        row = self.pending.pop(key)
        slot = self.rows.slot(row)
        self._arena.bump_generation(slot.offset)
        self.rows.references[row] += writers
        self.aside.add(row)
        return slot

    def row_of(self, slot: Slot) -> int:
        """Of a slot that someone has a reference on."""
        return self.allocator.owner(slot.offset - self._arena.data_offset)

    def acquire(self, keys: Sequence[BlockKey]) -> list[Resident | None]:
        rows = list(map(self.resident.get, keys))
        found = [row for row in rows if row is not None]
        references = self.rows.references
        for row in found:
            references[row] += 1
        self.hits += len(found)
        residents = self.rows.residents(found)
        if len(found) == len(rows):
            return list[Resident | None](residents)
        left = iter(residents)
        return [None if row is None else next(left) for row in rows]

    def touch(self, keys: Sequence[BlockKey]) -> None:
        """Show the policy a chain, in the objects that the books have of its keys: it may keep
        them, and is not to keep a second one of each."""
        rows, own = map(self.resident.get, keys), self.rows.keys
        self.policy.touch(
            [key if row is None else own[row] for key, row in zip(keys, rows, strict=True)]
        )

    def release(self, keys: Iterable[BlockKey]) -> None:
        references = self.rows.references
        for key in keys:
            row = self.resident.get(key)
            if row is None:
                self.release_row(self.dropped[key])
            else:
                assert references[row] > 0, "released more often than acquired"
                references[row] -= 1

    def release_row(self, row: int) -> None:
        """Give back a reference, whatever became of the block."""
        references = self.rows.references
        assert references[row] > 0, "released more often than acquired"
        references[row] -= 1
        if references[row]:
            return
        key = self.rows.keys[row]
        if row in self.aside:
            self.aside.remove(row)
            self._free(row)
        elif self.dropped.get(key) == row:
            del self.dropped[key]
            self._free(row)

    def drop(self, keys: Iterable[BlockKey]) -> list[BlockKey]:
        """Returns those that were here."""
        gone = []
        for key in keys:
            row = self.resident.pop(key, None)
            if row is not None:
                gone.append(key)
                if self.rows.references[row]:
                    self.dropped[key] = row
                else:
                    self._free(row)
        self.policy.remove(gone)
        return gone

    def evict(self, key: BlockKey) -> None:
        """Remove a block that the policy gave up already."""
        assert self.evictable(key)
        self._free(self.resident.pop(key))
        self.evictions += 1

    def evictable(self, key: BlockKey) -> bool:
        row = self.resident.get(key)
        if row is None or self.rows.references[row]:
            return False
        return self.guard is nothing_guarded or not self.guard(key)

    def info(self, key: BlockKey) -> BlockInfo | None:
        row = self.resident.get(key)
        if row is None:
            return None
        return BlockInfo(key, self.rows.length_bytes(row), self.rows.checksum(row))

    def same_class(self, key: BlockKey, block_bytes: int) -> bool:
        """Whether the slot of a resident block would do for one of `block_bytes`."""
        return self.allocator.same_class(self._within(self.resident[key]), block_bytes)

    def evictable_slab(self, key: BlockKey) -> list[BlockKey]:
        """All blocks in the slab of a resident one, itself included, if all may go; else none."""
        rows = self.allocator.neighbours(self._within(self.resident[key]))
        keys = [self.rows.keys[row] for row in rows]
        for row, neighbour in zip(rows, keys, strict=True):
            if self.resident.get(neighbour) != row or not self.evictable(neighbour):
                return []
        return keys

    def slot_bytes(self, slot: Slot) -> int:
        return self.allocator.size_at(slot.offset - self._arena.data_offset)

    def _within(self, row: int) -> int:
        return self.rows.offset(row) - self._arena.data_offset

    def _free(self, row: int) -> None:
        """The generation goes up before the memory can get another use."""
        self._arena.bump_generation(self.rows.offset(row))
        layout = self.rows.keys[row].layout
        self.bytes_of[layout] -= self.allocator.free(self._within(row))
        if not self.bytes_of[layout]:
            del self.bytes_of[layout]
        self.rows.remove(row)


def nothing_guarded(_: BlockKey) -> bool:
    """The `guard` of a tier that nobody gave one."""
    return False

"""The host tier: blocks in shared memory, written and read in place."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import groupby

from kvstore.core.checksum import checksum
from kvstore.core.ids import BlockKey, LayoutFingerprint
from kvstore.core.ports import Clock
from kvstore.eviction.base import EvictionPolicy
from kvstore.tiers.base import (
    Block,
    BlockInfo,
    MissReason,
    Reserved,
    ReserveOutcome,
    Resident,
    Slot,
    StoreResult,
    TierKind,
    TierStatistics,
)
from kvstore.tiers.host.arena import Arena
from kvstore.tiers.host.blocks import HostBlocks
from kvstore.tiers.host.prefault import Prefaulter
from kvstore.tiers.host.reserve import evict_to, evict_within, reserve
from kvstore.tiers.host.streams import acquire_pending, streamed
from kvstore.tiers.memory import copy_bytes

_AHEAD_BYTES_MAX = 64 << 20
"""Memory supplied ahead of use, at most one slab: what a second of fast writing takes is not worth
holding back from others."""

_STEP_BLOCKS = 4_096
"""Blocks that an inventory looks at in one go."""


class HostTier:
    """`AddressableTier` over an arena, which it owns from now on: `close` closes it.

    Threads: every verb takes one short lock; bytes are copied and checksummed outside of it.
    Bound: blocks never leave the arena's data area. `used_bytes` counts size classes, pending
    blocks included; the watermarks are fractions of the capacity in the same count. A full arena
    whose blocks are all in use answers NO_SPACE.
    Drops: a dropped block that is still acquired is invisible at once, but its memory waits for
    the last `release`; until then `reserve` answers PENDING for its key.
    """

    kind = TierKind.HOST

    def __init__(
        self,
        arena: Arena,
        policy: EvictionPolicy[BlockKey],
        *,
        high_watermark: float = 0.95,
        low_watermark: float = 0.90,
        slab_bytes: int | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        """`clock` times retention."""
        assert 0 < low_watermark <= high_watermark <= 1
        self.arena = arena
        self._blocks = HostBlocks(arena, policy, slab_bytes, clock)
        self._high_bytes = int(high_watermark * arena.capacity_bytes)
        self._low_bytes = int(low_watermark * arena.capacity_bytes)
        self._prefaulter = Prefaulter(
            arena.populate, arena.capacity_bytes, min(self.block_bytes_max, _AHEAD_BYTES_MAX)
        )
        self._front_bytes = 0
        self._lock = threading.Lock()
        self._corruptions = 0

    @property
    def block_bytes_max(self) -> int:
        """Longest block that can be reserved."""
        return self._blocks.allocator.slab_bytes

    @property
    def guard(self) -> Callable[[BlockKey], bool]:
        return self._blocks.guard

    @guard.setter
    def guard(self, guard: Callable[[BlockKey], bool]) -> None:
        self._blocks.guard = guard

    def reserve(self, keys: Sequence[BlockKey], block_bytes: int) -> Reserved:
        """See `AddressableTier`. Raises InvalidArgumentError for more than `block_bytes_max`."""
        self._blocks.allocator.check_fits(block_bytes)
        with self._lock:
            reserved = reserve(self._blocks, keys, block_bytes)
            front_bytes = self._blocks.allocator.front_bytes
        if front_bytes > self._front_bytes:
            self._front_bytes = front_bytes
            self._prefaulter.reach(front_bytes)
        return reserved

    def commit(
        self, keys: Sequence[BlockKey], lengths_bytes: Sequence[int], checksums: Sequence[int]
    ) -> None:
        with self._lock:
            self._blocks.commit(keys, lengths_bytes, checksums)

    def abort(self, keys: Iterable[BlockKey]) -> None:
        with self._lock:
            self._blocks.abort(keys)

    def pending(self, key: BlockKey) -> bool:
        with self._lock:
            return key in self._blocks.pending

    def set_aside(self, keys: Iterable[BlockKey]) -> list[Slot]:
        with self._lock:
            return [self._blocks.set_aside(key, 1) for key in keys]

    def acquire_pending(self, keys: Iterable[BlockKey]) -> list[Slot | None]:
        with self._lock:
            return acquire_pending(self._blocks, keys)

    def release_slots(self, slots: Iterable[Slot]) -> None:
        with self._lock:
            for slot in slots:
                self._blocks.release_row(self._blocks.row_of(slot))

    def streamed(self, slots: Iterable[Slot]) -> list[Resident | MissReason]:
        with self._lock:
            return [streamed(self._blocks, slot) for slot in slots]

    def bytes_needed(self, block_bytes: int) -> int:
        self._blocks.allocator.check_fits(block_bytes)
        return self._blocks.allocator.slot_bytes(block_bytes)

    def slot_bytes(self, slot: Slot) -> int:
        with self._lock:
            return self._blocks.slot_bytes(slot)

    def acquire(self, keys: Sequence[BlockKey]) -> list[Resident | None]:
        with self._lock:
            self._blocks.touch(keys)
            return self._blocks.acquire(keys)

    def hold(self, keys: Sequence[BlockKey]) -> list[Resident | None]:
        with self._lock:
            return self._blocks.acquire(keys)

    def release(self, keys: Iterable[BlockKey]) -> None:
        with self._lock:
            self._blocks.release(keys)

    def view(self, slot: Slot) -> memoryview:
        return self.arena.view(slot.offset, slot.length_bytes)

    def evict_to_low_watermark(self) -> list[BlockKey]:
        with self._lock:
            if self._blocks.allocator.used_bytes <= self._high_bytes:
                return []
            return evict_to(self._blocks, self._low_bytes)

    def evict(self, keys: Iterable[BlockKey]) -> list[BlockKey]:
        with self._lock:
            going = [key for key in dict.fromkeys(keys) if self._blocks.evictable(key)]
            self._blocks.policy.remove(going)
            for key in going:
                self._blocks.evict(key)
            return going

    def touch(self, keys: Sequence[BlockKey]) -> None:
        with self._lock:
            self._blocks.touch(keys)

    def retain(
        self, keys: Sequence[BlockKey], priority: int, duration_s: float | None
    ) -> list[BlockKey]:
        with self._lock:
            here = [key for key in keys if key in self._blocks.resident]
            self._blocks.policy.retain(here, priority, duration_s)
            return here

    def bytes_of(self, layout: LayoutFingerprint) -> int:
        return self._blocks.bytes_of.get(layout, 0)

    def evict_within(
        self, layouts: Collection[LayoutFingerprint], needed_bytes: int
    ) -> list[BlockKey]:
        with self._lock:
            return evict_within(self._blocks, layouts, needed_bytes)

    def store(self, blocks: Sequence[Block]) -> StoreResult:
        """See `Tier`. Blocks whose bytes are not those of their checksum, and blocks longer than
        `block_bytes_max`, are left out."""
        stored: list[BlockKey] = []
        evicted: list[BlockKey] = []
        for length, group in groupby(blocks, lambda block: block.data.nbytes):
            if length <= self.block_bytes_max:
                result = self._store_equals(list(group), length)
                stored += result.stored
                evicted += result.evicted
        return StoreResult(stored, evicted)

    def _store_equals(self, blocks: list[Block], length: int) -> StoreResult:
        """Blocks of one length."""
        reserved = self.reserve([block.key for block in blocks], length)
        slots = iter(reserved.slots)
        stored: list[BlockKey] = []
        new: list[Block] = []
        bad: list[BlockKey] = []
        for block, outcome in zip(blocks, reserved.outcomes, strict=True):
            if outcome is ReserveOutcome.EXISTS:
                stored.append(block.key)
            elif outcome is ReserveOutcome.RESERVED and self._fill(next(slots), block):
                new.append(block)
            elif outcome is ReserveOutcome.RESERVED:
                bad.append(block.key)
        self.commit([b.key for b in new], [length] * len(new), [b.checksum for b in new])
        self.abort(bad)
        self._count_corrupt(len(bad))
        return StoreResult(stored + [block.key for block in new], reserved.evicted)

    def _fill(self, slot: Slot, block: Block) -> bool:
        """Copy a block in; whether the copy is right."""
        view = self.view(slot)
        copy_bytes(view, block.data)
        return checksum(view) == block.checksum

    def load(self, keys: Sequence[BlockKey], into: Sequence[memoryview]) -> list[MissReason | None]:
        residents = self.acquire(keys)
        try:
            return [
                self._copy_out(key, resident, buffer)
                for key, resident, buffer in zip(keys, residents, into, strict=True)
            ]
        finally:
            self.release(k for k, r in zip(keys, residents, strict=True) if r is not None)

    def _copy_out(
        self, key: BlockKey, resident: Resident | None, into: memoryview
    ) -> MissReason | None:
        if resident is None:
            return MissReason.PENDING if self.pending(key) else MissReason.NEVER_STORED
        target = into[: resident.slot.length_bytes]
        copy_bytes(target, self.view(resident.slot))
        if checksum(target) == resident.checksum:
            return None
        self.drop([key])
        self._count_corrupt(1)
        return MissReason.CORRUPT

    def _count_corrupt(self, blocks: int) -> None:
        with self._lock:
            self._corruptions += blocks

    def drop(self, keys: Iterable[BlockKey]) -> list[BlockKey]:
        with self._lock:
            return self._blocks.drop(keys)

    def info(self, key: BlockKey) -> BlockInfo | None:
        with self._lock:
            return self._blocks.info(key)

    def __contains__(self, key: BlockKey) -> bool:
        return self.info(key) is not None

    def present(self, keys: Sequence[BlockKey]) -> list[bool]:
        with self._lock:
            return list(map(self._blocks.resident.__contains__, keys))

    def inventory(self) -> list[BlockInfo]:
        with self._lock:
            keys = list(self._blocks.resident)
        infos: list[BlockInfo] = []
        for i in range(0, len(keys), _STEP_BLOCKS):  # others get their turn between
            with self._lock:
                infos += filter(None, map(self._blocks.info, keys[i : i + _STEP_BLOCKS]))
        return infos

    def statistics(self) -> TierStatistics:
        with self._lock:
            return TierStatistics(
                kind=self.kind,
                capacity_bytes=self.arena.capacity_bytes,
                used_bytes=self._blocks.allocator.used_bytes,
                blocks=len(self._blocks.resident),
                hits=self._blocks.hits,
                evictions=self._blocks.evictions,
                corruptions=self._corruptions,
                errors=0,
            )

    def close(self) -> None:
        """See `Tier`. No other verb that touches bytes may run or follow."""
        self._prefaulter.close()
        self.arena.close()

    def __repr__(self) -> str:
        return (
            f"HostTier({len(self._blocks.resident)} blocks, {self._blocks.allocator!r}, "
            f"{self.arena!r})"
        )

"""From the store into the device tier: the blocks of one KV group under lease."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvstore.client.base import FoundBlock
from kvstore.client.deadline import Deadline
from kvstore.client.sync import SyncLease
from kvstore.core.errors import (
    ChecksumError,
    DeadlineExceededError,
    LeaseExpiredError,
    UnavailableError,
)
from kvstore.tiers.base import MissReason, TierKind
from kvstore.tiers.device.cache import DeviceCache
from kvstore.tiers.device.copying import LayerSpan

_NOT_IN_TIME = (DeadlineExceededError, LeaseExpiredError, UnavailableError)
"""A writer that is too slow, that gave up, and a node that went with it."""


@dataclass(frozen=True, slots=True)
class LeasedRun:
    """Blocks of one KV group, in prefix order. Owned by one thread."""

    lease: SyncLease
    group: int
    first: int
    """Place in the prefix of the first block that was asked for."""

    @property
    def end(self) -> int:
        """Up to here they are there without a hole."""
        return self.first + self.lease.prefix_length

    def copy(
        self, cache: DeviceCache, first: int, block_ids: Sequence[int], deadline: Deadline
    ) -> list[TierKind]:
        """Copy the blocks from `first` on into `block_ids`, those that are being written layer by
        layer, as they come. Returns the tiers of the leading ones whose copies are right; what the
        others hold is undefined."""
        start = first - self.first
        found = [b for b in self.lease.found if start <= b.index < start + len(block_ids)]
        assert len(found) == len(block_ids), "copies blocks that were not found"
        target = dict(zip((block.index for block in found), block_ids, strict=True))
        whole = [block for block in found if not block.pending]
        cache.import_blocks([target[b.index] for b in whole], [b.view for b in whole])
        if pending := [block for block in found if block.pending]:
            self._stream(cache, pending, [target[b.index] for b in pending], deadline)
        return self._trusted(found)

    @property
    def is_late(self) -> bool:
        """Whether some were there, but did not come in time."""
        return MissReason.LATE in self.lease.misses.values()

    @property
    def streams(self) -> bool:
        """Whether some are still being written."""
        return any(block.pending for block in self.lease.found)

    def _stream(
        self,
        cache: DeviceCache,
        blocks: Sequence[FoundBlock],
        block_ids: Sequence[int],
        deadline: Deadline,
    ) -> None:
        """Those that do not come in time, or not at all, become misses of the lease."""
        lease, num_layers, num_copied = self.lease, cache.layout.num_layers, 0
        views = [block.view for block in blocks]
        try:
            while num_copied < num_layers:
                lease.wait_layers(num_copied + 1, deadline.remaining_s())
                ready = min(num_layers, *map(lease.layers_ready, blocks))
                cache.import_layers(block_ids, LayerSpan(num_copied, ready), views)
                num_copied = ready
            lease.confirm(deadline.remaining_s())
        except _NOT_IN_TIME:
            lease.misses.update(dict.fromkeys((b.index for b in blocks), MissReason.LATE))

    def _trusted(self, found: Sequence[FoundBlock]) -> list[TierKind]:
        """The bytes of a generation never change, so that a right checksum now and an unchanged
        generation after it prove what was copied before."""
        tiers = []
        for block in found:
            if block.index in self.lease.misses:
                break
            try:
                self.lease.check(block)
            except (ChecksumError, LeaseExpiredError) as error:
                corrupt = isinstance(error, ChecksumError)
                reason = MissReason.CORRUPT if corrupt else MissReason.LATE
                self.lease.misses[block.index] = reason
                break
            tiers.append(block.tier)
        return tiers

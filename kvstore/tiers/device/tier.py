"""The device tier behind the verbs of every tier: blocks go in and out by key, as bytes."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from itertools import compress

from kvstore.core.checksum import checksum
from kvstore.core.ids import BlockHash, BlockKey
from kvstore.tiers.base import (
    Block,
    BlockInfo,
    MissReason,
    StoreResult,
    TierKind,
    TierStatistics,
)
from kvstore.tiers.device.cache import DeviceCache
from kvstore.tiers.device.pool import BlockPool


class DeviceTier:
    """`Tier` over a device cache of one layout, which it owns.

    It takes blocks of just that layout and length; others are left out. Evicts the longest unused.
    Threads: the books are under a short lock; bytes are copied outside of it, in one batch a call,
    and checksummed on the CPU, where they come from or go to. Blocks that are being copied are
    held, so that a store that finds all others held leaves the tail of its batch out.
    """

    kind = TierKind.DEVICE

    def __init__(self, cache: DeviceCache) -> None:
        self._cache = cache
        self._pool = BlockPool(cache.num_blocks)
        self._checksums: dict[BlockHash, int] = {}
        """Of the blocks that the pool finds."""
        self._lock = threading.Lock()
        self._hits = self._evictions = self._corruptions = 0

    def store(self, blocks: Sequence[Block]) -> StoreResult:
        wanted = {block.key: block for block in blocks}
        new = [b for b in wanted.values() if self._fits(b) and b.key not in self]
        whole = [checksum(block.data) == block.checksum for block in new]
        new = list(compress(new, whole))
        with self._lock:
            self._corruptions += len(whole) - len(new)
            del new[self._pool.num_free :]
            ids = self._pool.allocate(len(new))
            evicted = self._forget_evicted()
        self._cache.import_blocks(ids, [block.data for block in new])
        with self._lock:
            self._pool.name(ids, [block.key.hash for block in new])
            self._pool.release(ids)
            for block in new:
                self._checksums.setdefault(block.key.hash, block.checksum)
            self._pool.drain_events()
            here = [key for key in wanted if self._has(key)]
        return StoreResult(here, evicted)

    def load(self, keys: Sequence[BlockKey], into: Sequence[memoryview]) -> list[MissReason | None]:
        with self._lock:
            held = [self._hold(key) for key in keys]
            checksums = [self._checksums.get(key.hash) for key in keys]
        found = [i for i, block in enumerate(held) if block is not None]
        ids = [block for block in held if block is not None]
        views = [into[i][: self._cache.layout.block_bytes] for i in found]
        try:
            self._cache.export_blocks(ids, views)
            good = [checksum(view) == checksums[i] for i, view in zip(found, views, strict=True)]
        finally:
            with self._lock:
                self._pool.release(ids)
        results: list[MissReason | None] = [MissReason.NEVER_STORED] * len(keys)
        for i, right in zip(found, good, strict=True):
            results[i] = None if right else MissReason.CORRUPT
        self._settle(keys, results)
        return results

    def drop(self, keys: Iterable[BlockKey]) -> list[BlockKey]:
        with self._lock:
            return [key for key in keys if self._drop(key)]

    def info(self, key: BlockKey) -> BlockInfo | None:
        with self._lock:
            return self._info(key.hash) if self._has(key) else None

    def __contains__(self, key: BlockKey) -> bool:
        with self._lock:
            return self._has(key)

    def present(self, keys: Sequence[BlockKey]) -> list[bool]:
        with self._lock:
            return [self._has(key) for key in keys]

    def inventory(self) -> list[BlockInfo]:
        with self._lock:
            return [self._info(block_hash) for block_hash in self._pool.inventory()]

    def statistics(self) -> TierStatistics:
        with self._lock:
            blocks = len(self._checksums)
            return TierStatistics(
                kind=self.kind,
                capacity_bytes=self._cache.num_blocks * self._cache.layout.block_bytes,
                used_bytes=blocks * self._cache.layout.block_bytes,
                blocks=blocks,
                hits=self._hits,
                evictions=self._evictions,
                corruptions=self._corruptions,
                errors=0,
            )

    def close(self) -> None:
        """See `Tier`. The memory goes with the cache, when nobody has it any more."""
        self.drop([info.key for info in self.inventory()])

    def _fits(self, block: Block) -> bool:
        layout = self._cache.layout
        return block.key.layout == layout.fingerprint and block.data.nbytes == layout.block_bytes

    def _has(self, key: BlockKey) -> bool:
        return key.layout == self._cache.layout.fingerprint and key.hash in self._pool

    def _hold(self, key: BlockKey) -> int | None:
        if not self._has(key):
            return None
        (block,) = self._pool.match([key.hash])
        return block

    def _settle(self, keys: Sequence[BlockKey], results: Sequence[MissReason | None]) -> None:
        bad = [key for key, miss in zip(keys, results, strict=True) if miss is MissReason.CORRUPT]
        with self._lock:
            self._hits += sum(miss is None for miss in results)
            self._corruptions += len(bad)
            for key in bad:
                self._drop(key)

    def _drop(self, key: BlockKey) -> bool:
        if not self._has(key):
            return False
        self._pool.drop(key.hash)
        del self._checksums[key.hash]
        self._pool.drain_events()
        return True

    def _forget_evicted(self) -> list[BlockKey]:
        """Blocks that made room for those just allocated."""
        removed = self._pool.drain_events().removed
        self._evictions += len(removed)
        for block_hash in removed:
            del self._checksums[block_hash]
        return [BlockKey(self._cache.layout.fingerprint, block_hash) for block_hash in removed]

    def _info(self, block_hash: BlockHash) -> BlockInfo:
        key = BlockKey(self._cache.layout.fingerprint, block_hash)
        return BlockInfo(key, self._cache.layout.block_bytes, self._checksums[block_hash])

    def __repr__(self) -> str:
        return f"DeviceTier({self._cache!r}, {self._pool!r})"

"""The store connector for a worker with a node on its host."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from kvstore.client.base import FoundBlock
from kvstore.client.sync import SyncClient, SyncLease
from kvstore.core.errors import (
    ChecksumError,
    DeadlineExceededError,
    InvalidArgumentError,
    KVStoreError,
    LeaseExpiredError,
)
from kvstore.core.ids import BlockHash, BlockKeys
from kvstore.core.ports import Clock
from kvstore.tiers.base import TierKind
from kvstore.tiers.device.cache import DeviceCache
from model_runner.store import BlockRun, Fetched, LayerWriter, Published, Wanted
from model_runner.store_guard import StoreGuard

_FETCH_THREADS = 2
"""Copies in the device tier do not hold the GIL; one waits for the node while another copies."""


@dataclass(frozen=True, slots=True)
class StoreStatistics:
    fetched_blocks: int
    missed_blocks: int
    """Asked for, and not there (in time)."""
    published_blocks: int
    skipped_blocks: int
    """Not published: too many were on their way."""
    errors: Mapping[str, int]
    """By class of error."""


class NodeStore:
    """Implements `StoreConnector` over a client of the local node.

    Threads: fetches and publications run in small pools of their own, so that one does not wait
    for the other. Bound: `max_pending_blocks` on their way to the store (a larger single batch goes
    if nothing else does); fetches are bounded by the requests that wait for them.
    Ownership: owns the client, which it opens when it first succeeds in doing so.
    """

    enabled = True

    def __init__(
        self,
        cache: DeviceCache,
        connect: Callable[[], SyncClient],
        *,
        deadline_s: float,
        max_pending_blocks: int,
        clock: Clock = time.monotonic,
    ) -> None:
        self._cache = cache
        self._connect = connect
        self._deadline_s = deadline_s
        self._max_pending_blocks = max_pending_blocks
        self._clock = clock
        self._guard = StoreGuard(clock)
        self._lock = threading.Lock()
        self._opening = threading.Lock()
        self._client: SyncClient | None = None
        self._pending_blocks = 0
        self._fetched = self._missed = self._published = self._skipped = 0
        self._fetchers = ThreadPoolExecutor(_FETCH_THREADS, "store-fetch")
        self._publisher = ThreadPoolExecutor(1, "store-publish")

    def open(self) -> None:
        """Connect now if the node is there; if not, a later call will.

        Raises InvalidArgumentError if the node can never serve this worker: its blocks do not fit,
        or the endpoint is none.
        """
        self._connected()

    def fetch(self, wanted: Wanted, done: Fetched) -> None:
        deadline = self._clock() + self._deadline_s
        self._fetchers.submit(self._fetch, wanted.hashes, wanted.block_ids[0], deadline, done)

    def publish(self, runs: Sequence[BlockRun], done: Published) -> bool:
        [run] = runs
        with self._lock:
            pending = self._pending_blocks + len(run.hashes)
            if self._pending_blocks and pending > self._max_pending_blocks:
                self._skipped += len(run.hashes)
                return False
            self._pending_blocks = pending
        self._publisher.submit(self._publish, run.hashes, run.block_ids, done)
        return True

    def follow(self, runs: Sequence[BlockRun], done: Published) -> LayerWriter | None:
        return None

    def statistics(self) -> StoreStatistics:
        with self._lock:
            return StoreStatistics(
                self._fetched, self._missed, self._published, self._skipped, self._guard.errors
            )

    def close(self) -> None:
        self._fetchers.shutdown(cancel_futures=True)
        self._publisher.shutdown()
        if self._client is not None:
            self._client.close()

    def _fetch(
        self,
        hashes: Sequence[BlockHash],
        block_ids: Sequence[int],
        deadline: float,
        done: Fetched,
    ) -> None:
        tiers: Sequence[TierKind] = []
        try:
            if self._guard.may_read:
                tiers = self._load(hashes, block_ids, deadline)
        except Exception as error:  # the boundary of a thread: no store, no hit
            self._guard.failed("fetch", error)
        with self._lock:
            self._fetched += len(tiers)
            self._missed += len(hashes) - len(tiers)
        done(tiers)

    def _load(
        self, hashes: Sequence[BlockHash], block_ids: Sequence[int], deadline: float
    ) -> Sequence[TierKind]:
        client, remaining_s = self._connected(), deadline - self._clock()
        if client is None:
            return []
        if remaining_s <= 0:
            raise DeadlineExceededError("earlier fetches took all the time that this one had")
        with client.acquire(self._keys(hashes), deadline_s=remaining_s) as lease:
            found = lease.found[: lease.prefix_length]
            self._guard.succeeded()
            self._cache.import_blocks(block_ids[: len(found)], [block.view for block in found])
            return _trusted(lease, found)

    def _publish(
        self, hashes: Sequence[BlockHash], block_ids: Sequence[int], done: Published
    ) -> None:
        stored = 0
        try:
            if self._guard.may_write:
                stored = self._save(hashes, block_ids)
        except Exception as error:  # the boundary of a thread: these blocks are given up
            self._guard.failed("publish", error)
        with self._lock:
            self._pending_blocks -= len(hashes)
            self._published += stored
        done()

    def _save(self, hashes: Sequence[BlockHash], block_ids: Sequence[int]) -> int:
        """Returns how many blocks the store lacked and has now."""
        client, block_bytes = self._connected(), self._cache.layout.block_bytes
        if client is None:
            return 0
        keys = self._keys(hashes)
        with client.reserve(keys, block_bytes, deadline_s=self._deadline_s) as reservation:
            self._guard.succeeded()
            blocks = reservation.blocks
            if blocks:
                self._cache.export_blocks(
                    [block_ids[block.index] for block in blocks], [block.view for block in blocks]
                )
                reservation.commit()
            return len(blocks)

    def _keys(self, hashes: Sequence[BlockHash]) -> BlockKeys:
        return BlockKeys(self._cache.layout.fingerprint, hashes)

    def _connected(self) -> SyncClient | None:
        """None if the node is not there. One thread tries; the others wait for what it finds."""
        with self._opening:
            if self._client is None and self._guard.may_write:
                try:
                    self._client = self._connect()
                except InvalidArgumentError:
                    raise
                except KVStoreError as error:
                    self._guard.failed("connect", error)
            return self._client


def _trusted(lease: SyncLease, found: Sequence[FoundBlock]) -> list[TierKind]:
    """Tiers of the leading blocks whose copies are right.

    The bytes of a generation never change, so that a right checksum now and an unchanged generation
    after it prove what was copied before.
    """
    tiers = []
    for block in found:
        try:
            lease.check(block)
        except (ChecksumError, LeaseExpiredError):
            break
        tiers.append(block.tier)
    return tiers

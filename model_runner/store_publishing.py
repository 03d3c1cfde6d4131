"""From the device tier into the store: complete blocks, or layers as a step computes them."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from kvstore.client.sync import SyncClient
from kvstore.core.errors import ReservationExpiredError
from kvstore.core.ids import BlockKeys
from kvstore.tiers.device.cache import DeviceCache
from model_runner.kv_groups import KVGroup
from model_runner.store import BlockRun, LayerWriter, Published
from model_runner.store_layers import End, LayerProgress, Progress, finished
from model_runner.store_session import NodeSession
from model_runner.store_writing import LayerWriting

BATCH_BYTES = 4 << 20
"""Layers are copied when there is so much of them: half a millisecond or so. A step that has less
goes at its end, in one copy."""

_STEP_S = 60.0
"""Longest wait for a step. The node gives up a writer long before; then its blocks are written once
more, when the step is over."""


class Publisher:
    """Writes blocks of all KV groups, one batch after the other, on a thread of its own.

    Bound: `max_pending_blocks` on their way (a larger single batch goes if nothing else does).
    """

    def __init__(
        self,
        session: NodeSession,
        groups: Sequence[KVGroup],
        caches: Sequence[DeviceCache],
        *,
        deadline_s: float,
        max_pending_blocks: int,
    ) -> None:
        self._session = session
        self._groups = groups
        self._caches = caches
        self._deadline_s = deadline_s
        self._max_pending_blocks = max_pending_blocks
        self._num_layers = sum(len(group.layers) for group in groups)
        self._lock = threading.Lock()
        self._pending_blocks = 0
        self._published = self._skipped = 0
        self._thread = ThreadPoolExecutor(1, "store-publish")

    @property
    def published_blocks(self) -> int:
        return self._published

    @property
    def skipped_blocks(self) -> int:
        """Too many were on their way."""
        return self._skipped

    def publish(self, runs: Sequence[BlockRun], done: Published) -> bool:
        """See `StoreConnector`."""
        if not self._takes(runs):
            with self._lock:
                self._skipped += _num_blocks(runs)
            return False
        self._thread.submit(self._run, runs, finished(), done)
        return True

    def follow(self, runs: Sequence[BlockRun], done: Published) -> LayerWriter | None:
        """See `StoreConnector`."""
        if not self._takes(runs):
            return None
        progress = LayerProgress(self._layers_at_a_time(runs), self._caches[0].mark)
        self._thread.submit(self._run, runs, progress, done)
        return progress

    def close(self) -> None:
        """When all that was taken is stored or given up."""
        self._thread.shutdown()

    def _takes(self, runs: Sequence[BlockRun]) -> bool:
        count = _num_blocks(runs)
        with self._lock:
            pending = self._pending_blocks + count
            if self._pending_blocks and pending > self._max_pending_blocks:
                return False
            self._pending_blocks = pending
            return True

    def _layers_at_a_time(self, runs: Sequence[BlockRun]) -> int:
        sizes = (len(run.hashes) * self._groups[run.group].layout.block_bytes for run in runs)
        layer_bytes = sum(sizes) / self._num_layers
        return math.ceil(BATCH_BYTES / max(layer_bytes, 1))

    def _run(self, runs: Sequence[BlockRun], progress: LayerProgress, done: Published) -> None:
        guard, stored = self._session.guard, 0
        try:
            client = self._session.client() if guard.may_write else None
            if client is not None:
                stored = self._write(client, runs, progress)
        except Exception as error:  # the boundary of a thread: these blocks are given up
            guard.failed("publish", error)
        with self._lock:
            self._pending_blocks -= _num_blocks(runs)
            self._published += stored
        done()

    def _write(self, client: SyncClient, runs: Sequence[BlockRun], progress: LayerProgress) -> int:
        """Returns how many blocks the store lacked and has now."""
        try:
            return self._write_once(client, runs, progress)
        except ReservationExpiredError:  # the step took longer than a writer may; it is over now
            return self._write_once(client, runs, progress)

    def _write_once(
        self, client: SyncClient, runs: Sequence[BlockRun], progress: LayerProgress
    ) -> int:
        with ExitStack() as reserved:
            writings = [
                reserved.enter_context(self._reserve(client, index, group_runs))
                for index in range(len(self._groups))
                if (group_runs := [run for run in runs if run.group == index and run.hashes])
            ]
            self._session.guard.succeeded()
            now = _write_layers(writings, progress)
            if now.end is End.ABANDONED:
                return 0
            return sum(writing.commit(now.without) for writing in writings)

    def _reserve(self, client: SyncClient, index: int, runs: Sequence[BlockRun]) -> LayerWriting:
        group, cache = self._groups[index], self._caches[index]
        hashes = [block_hash for run in runs for block_hash in run.hashes]
        block_ids = [block for run in runs for block in run.block_ids]
        keys = BlockKeys(group.layout.fingerprint, hashes)
        reservation = client.reserve(keys, group.layout.block_bytes, deadline_s=self._deadline_s)
        return LayerWriting(group, cache, reservation, hashes, block_ids)


def _write_layers(writings: Sequence[LayerWriting], progress: LayerProgress) -> Progress:
    """Copy layers as they come, until the step is over."""
    now = progress.wait(0, _STEP_S)
    while now.end is None:
        for writing in writings:
            writing.copy(frozenset(now.layers), now.mark)
        now = progress.wait(len(now.layers), _STEP_S)
    if now.end is End.FINISHED:
        for writing in writings:
            writing.copy_rest(now.mark)
    return now


def _num_blocks(runs: Sequence[BlockRun]) -> int:
    return sum(len(run.hashes) for run in runs)

"""Committed blocks on their way from the host tier to the disk tier."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Executor

from kvstore.core.ids import BlockKey
from kvstore.node.replicas import Replicas
from kvstore.tiers.base import Block, Resident, StoreResult, TierKind

_LOG = logging.getLogger(__name__)

BATCH_BYTES = 32 << 20


class WriteThrough:
    """A bounded queue in front of the disk. One batch is being written at a time.

    A queued block is referenced, so that the host tier cannot evict it before it is written. Bound:
    `max_bytes` queued and in work; what is offered beyond that stays in the host tier alone and is
    counted. Owned by the node's event loop; only `disk.store` runs in `executor`.
    """

    def __init__(self, replicas: Replicas, executor: Executor, max_bytes: int) -> None:
        self._replicas = replicas
        self._executor = executor
        self._max_bytes = max_bytes
        self._queue: deque[tuple[BlockKey, Resident]] = deque()
        self._bytes = 0
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self.num_skipped = 0

    def offer(self, keys: Sequence[BlockKey]) -> None:
        """Write resident blocks to disk some time soon, those that there is room for."""
        residents = self._replicas.host.acquire(keys)
        refused = []
        for key, resident in zip(keys, residents, strict=True):
            assert resident is not None, "offered blocks are resident"
            size = resident.slot.length_bytes
            if self._stopping or self._bytes + size > self._max_bytes:
                refused.append(key)
                continue
            self._bytes += size
            self._queue.append((key, resident))
        self._replicas.host.release(refused)
        self.num_skipped += len(refused)
        if self._queue and self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._drain_queue())

    async def stop(self, flush_s: float) -> None:
        """Write what is queued for at most `flush_s`, then give up the rest; the batch in work is
        ended."""
        if self._task is not None:
            await asyncio.wait([self._task], timeout=flush_s)
        self._stopping = True
        self._release([key for key, _ in self._queue])
        self.num_skipped += len(self._queue)
        self._queue.clear()
        if self._task is not None:
            await self._task

    async def _drain_queue(self) -> None:
        while self._queue:
            batch = self._next_batch()
            await self._store(batch)
            self._bytes -= sum(resident.slot.length_bytes for _, resident in batch)
        self._task = None

    def _next_batch(self) -> list[tuple[BlockKey, Resident]]:
        batch = [self._queue.popleft()]
        size = batch[0][1].slot.length_bytes
        while self._queue and size < BATCH_BYTES:
            batch.append(self._queue.popleft())
            size += batch[-1][1].slot.length_bytes
        return batch

    async def _store(self, batch: Sequence[tuple[BlockKey, Resident]]) -> None:
        keys = [key for key, _ in batch]
        disk = self._replicas.disk
        assert disk is not None
        blocks = [Block(key, self._view(resident), resident.checksum) for key, resident in batch]
        loop = asyncio.get_running_loop()
        try:
            result = await loop.run_in_executor(self._executor, disk.store, blocks)
        except Exception:  # the boundary of this task: a defect of a tier must not end it
            _LOG.exception("the disk tier failed; %d blocks stay in the host tier alone", len(keys))
            result = StoreResult([], [])
        finally:
            self._release(keys)
        self._replicas.stored(TierKind.DISK, result.stored)
        self._replicas.evicted(TierKind.DISK, result.evicted)

    def _view(self, resident: Resident) -> memoryview:
        return self._replicas.host.view(resident.slot)[: resident.slot.length_bytes]

    def _release(self, keys: Sequence[BlockKey]) -> None:
        self._replicas.host.release(keys)

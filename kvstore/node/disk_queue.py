"""Blocks on their way from the host tier to the disk tier."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Executor

from kvstore.core.ids import BlockKey
from kvstore.node.ending import end_disk_work
from kvstore.node.replicas import Replicas
from kvstore.tiers.base import Block, Resident, StoreResult, TierKind

_LOG = logging.getLogger(__name__)

BATCH_BYTES = 32 << 20


class DiskQueue:
    """A bounded queue in front of the disk. One batch is being written at a time.

    A queued block is referenced, so that the host tier cannot evict it before it is written. Bound:
    `max_bytes` queued and in work; what is offered beyond that is refused. A block that is dropped
    from the host tier while it is queued or in work does not stay on disk. Owned by the node's
    event loop; only `disk.store` runs in `executor`.
    """

    def __init__(self, replicas: Replicas, executor: Executor, max_bytes: int) -> None:
        self._replicas = replicas
        self._executor = executor
        self._max_bytes = max_bytes
        self._queue: deque[tuple[BlockKey, Resident]] = deque()
        self._bytes = 0
        self._task: asyncio.Task[None] | None = None
        self._stopping = False

    @property
    def room_bytes(self) -> int:
        return 0 if self._stopping else self._max_bytes - self._bytes

    @property
    def idle(self) -> bool:
        return self._task is None

    def offer(self, keys: Sequence[BlockKey]) -> dict[BlockKey, int]:
        """Write blocks to disk some time soon, those that are resident. Returns those that there
        was no room for, with their bytes."""
        residents = self._replicas.host.hold(keys)
        refused: dict[BlockKey, int] = {}
        for key, resident in zip(keys, residents, strict=True):
            if resident is None:  # a reader keeps what was dropped
                continue
            size = resident.slot.length_bytes
            if size > self.room_bytes:
                refused[key] = size
                continue
            self._bytes += size
            self._queue.append((key, resident))
        self._replicas.host.release(refused)
        if self._queue and self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._drain_queue())
        return refused

    async def wait_idle(self, timeout_s: float) -> None:
        """Until all that was offered is written or given up, or the time is over."""
        if self._task is not None:
            await asyncio.wait([self._task], timeout=max(timeout_s, 0))

    async def stop(self, flush_s: float) -> int:
        """Write what is queued for at most `flush_s`, then give up the rest; the batch in work is
        ended, or abandoned if the disk hangs. Returns how many blocks were given up."""
        await self.wait_idle(flush_s)
        self._stopping = True
        given_up = len(self._queue)
        self._replicas.host.release([key for key, _ in self._queue])
        self._queue.clear()
        if self._task is not None:
            await end_disk_work([self._task])
            self._task = None
        return given_up

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
        blocks = [
            Block(key, self._view(resident), resident.checksum)
            for key, resident in batch
            if key in self._replicas.host
        ]
        loop = asyncio.get_running_loop()
        try:
            result = await loop.run_in_executor(self._executor, disk.store, blocks)
        except Exception:  # the boundary of this task: a defect of a tier must not end it
            _LOG.exception("the disk tier failed; %d blocks stay in the host tier alone", len(keys))
            result = StoreResult([], [])
        # Referenced blocks are not evicted: those that are gone were dropped, on disk too by now.
        dropped = [key for key in result.stored if key not in self._replicas.host]
        disk.drop(dropped)
        self._replicas.host.release(keys)
        gone = set(dropped)
        self._replicas.stored(TierKind.DISK, [key for key in result.stored if key not in gone])
        self._replicas.evicted(TierKind.DISK, result.evicted)

    def _view(self, resident: Resident) -> memoryview:
        return self._replicas.host.view(resident.slot)[: resident.slot.length_bytes]

"""Blocks on their way from the disk tier up to the host tier."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from kvstore.core.ids import BlockKey
from kvstore.node.arrivals import Arrivals, Claim
from kvstore.node.ending import end_disk_work
from kvstore.node.replicas import Replicas
from kvstore.tiers.base import BlockInfo, MissReason, ReserveOutcome, Slot, Tier, TierKind

_LOG = logging.getLogger(__name__)

STALL_S = 2.0
"""When loads are in flight and none has ended for so long, the disk hangs."""
BATCH_BYTES = 16 << 20
"""Small enough that the first blocks of a long prefix are there before the last ones are read."""

_EVICTED, _NEVER_STORED = MissReason.EVICTED, MissReason.NEVER_STORED


@dataclass(frozen=True, slots=True)
class _Load:
    info: BlockInfo
    slot: Slot


class Promoter:
    """Starts loads from disk: a `Source`. Owned by the node's event loop.

    Bound: `max_bytes` in flight; a block beyond that is a miss (LATE), and so is every block that
    is asked for while the disk hangs. Host memory is reserved before a load starts, and the disk
    tier reads straight into it and verifies the checksum there.
    """

    kind = TierKind.DISK

    def __init__(
        self,
        disk: Tier,
        replicas: Replicas,
        arrivals: Arrivals,
        executor: Executor,
        max_bytes: int,
    ) -> None:
        self._disk = disk
        self._replicas = replicas
        self._arrivals = arrivals
        self._executor = executor
        self._max_bytes = max_bytes
        self._bytes = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._progress_s = 0.0
        """When a load last ended, or began with no other in flight."""

    async def claim(self, keys: Sequence[BlockKey], timeout_s: float) -> dict[BlockKey, Claim]:
        started: dict[BlockKey, Claim] = {}
        by_length: dict[int, list[BlockInfo]] = {}
        hangs = self.hangs()
        for key in keys:
            if (info := self._disk.info(key)) is None or self._replicas.host.pending(key):
                continue
            if hangs or self._bytes + info.length_bytes > self._max_bytes:
                started[key] = MissReason.LATE
                continue
            self._bytes += info.length_bytes
            by_length.setdefault(info.length_bytes, []).append(info)
        for length_bytes, infos in by_length.items():
            started.update(self._start_equal(infos, length_bytes))
        return started

    def hangs(self) -> bool:
        now_s = asyncio.get_running_loop().time()
        if not self._tasks:
            self._progress_s = now_s
        return now_s - self._progress_s > STALL_S

    async def stop(self) -> None:
        await end_disk_work(list(self._tasks))

    def _start_equal(
        self, infos: Sequence[BlockInfo], length_bytes: int
    ) -> Iterator[tuple[BlockKey, Claim]]:
        """Start loads of blocks of one length."""
        reserved = self._replicas.reserve([info.key for info in infos], length_bytes)
        slots = iter(reserved.slots)
        loads = []
        for info, outcome in zip(infos, reserved.outcomes, strict=True):
            if outcome is ReserveOutcome.RESERVED:
                loads.append(_Load(info, next(slots)))
                continue
            self._bytes -= length_bytes
            no_space = outcome in (ReserveOutcome.NO_SPACE, ReserveOutcome.OVER_QUOTA)
            # Else a corrupt replica is in the way, dropped but still under some reader's lease.
            yield info.key, MissReason.NO_SPACE if no_space else MissReason.CORRUPT
        for batch in _batches(loads):
            yield from self._start_batch(batch)

    def _start_batch(self, loads: Sequence[_Load]) -> Iterator[tuple[BlockKey, Claim]]:
        for load in loads:
            yield load.info.key, self._arrivals.begin(load.info.key, self.kind)
        task = asyncio.get_running_loop().create_task(self._load(loads))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _load(self, loads: Sequence[_Load]) -> None:
        keys = [load.info.key for load in loads]
        views = [self._replicas.host.view(load.slot) for load in loads]
        loop = asyncio.get_running_loop()
        results: Sequence[MissReason | None]
        try:
            results = await loop.run_in_executor(self._executor, self._disk.load, keys, views)
        except asyncio.CancelledError:  # the disk hangs, and may yet write: the slots stay
            for key in keys:
                self._arrivals.settle(key, MissReason.LATE)
            raise
        except Exception:  # the boundary of this task: its claimants must be told in any case
            _LOG.exception("the disk tier failed to load %d blocks", len(keys))
            results = [MissReason.FAILED] * len(keys)
        self._progress_s = loop.time()
        self._bytes -= sum(load.info.length_bytes for load in loads)
        # It was there when the load began.
        self._publish(loads, [_EVICTED if m is _NEVER_STORED else m for m in results])

    def _publish(self, loads: Sequence[_Load], results: Sequence[MissReason | None]) -> None:
        ends = list(zip((load.info for load in loads), results, strict=True))
        misses = {info.key: miss for info, miss in ends if miss is not None}
        corrupt = [key for key, miss in misses.items() if miss is MissReason.CORRUPT]
        failed = [key for key, miss in misses.items() if miss is not MissReason.CORRUPT]
        self._replicas.host.abort(misses)
        self._replicas.corrupt(TierKind.DISK, corrupt)
        self._replicas.lost(TierKind.DISK, failed)
        for key, miss in misses.items():
            self._arrivals.settle(key, miss)
        self._arrivals.arrived([info for info, miss in ends if miss is None])


def _batches(loads: Sequence[_Load]) -> Iterator[Sequence[_Load]]:
    batch: list[_Load] = []
    size = 0
    for load in loads:
        batch.append(load)
        size += load.info.length_bytes
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch

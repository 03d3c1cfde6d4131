"""Blocks on their way from the disk tier up to the host tier."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from kvstore.core.ids import BlockKey
from kvstore.node.replicas import Replicas
from kvstore.tiers.base import BlockInfo, MissReason, ReserveOutcome, Slot, TierKind

_LOG = logging.getLogger(__name__)

BATCH_BYTES = 16 << 20
"""Small enough that the first blocks of a long prefix are there before the last ones are read."""


@dataclass
class Promotion:
    """One block on its way. Every reader that wants it meanwhile waits for this one."""

    future: asyncio.Future[MissReason | None]
    """None when it is in the host tier, else why it is not."""
    num_claims: int = 0
    held: bool = False
    """Whether the promotion still keeps a reference for those who claimed it."""


@dataclass(frozen=True, slots=True)
class _Load:
    info: BlockInfo
    slot: Slot


class Promoter:
    """Starts loads from disk, at most one for each block. Owned by the node's event loop.

    Bound: `max_bytes` in flight; a block beyond that is a miss (LATE). Host memory is reserved
    before a load starts, and the disk tier reads straight into it and verifies the checksum there.
    """

    def __init__(self, replicas: Replicas, executor: Executor, max_bytes: int) -> None:
        self._replicas = replicas
        self._executor = executor
        self._max_bytes = max_bytes
        self._bytes = 0
        self._running: dict[BlockKey, Promotion] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def running(self, key: BlockKey) -> bool:
        return key in self._running

    def claim(self, keys: Iterable[BlockKey]) -> dict[BlockKey, Promotion | MissReason]:
        """Join or start the promotion of each key; a reason where that cannot be.

        A promoted block cannot be evicted again until all who claimed it have called `unclaim`.
        """
        wanted = dict.fromkeys(keys)
        claims: dict[BlockKey, Promotion | MissReason] = {}
        claims.update((key, self._running[key]) for key in wanted if key in self._running)
        claims.update(self._start([key for key in wanted if key not in claims]))
        for promotion in _promotions(claims):
            promotion.num_claims += 1
        return claims

    def unclaim(self, claims: dict[BlockKey, Promotion | MissReason]) -> None:
        for key, promotion in claims.items():
            if isinstance(promotion, MissReason):
                continue
            promotion.num_claims -= 1
            if promotion.held and not promotion.num_claims:
                promotion.held = False
                self._replicas.host.release([key])

    async def wait(
        self, claims: dict[BlockKey, Promotion | MissReason], timeout_s: float
    ) -> dict[BlockKey, MissReason | None]:
        """How each claim ended, LATE for those that go on after `timeout_s`."""
        futures = {promotion.future for promotion in _promotions(claims)}
        if futures:
            await asyncio.wait(futures, timeout=timeout_s)
        return {key: _result(claim) for key, claim in claims.items()}

    async def stop(self) -> None:
        """Wait for the loads in flight, which write into host memory and cannot be called back."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _start(self, keys: Sequence[BlockKey]) -> dict[BlockKey, Promotion | MissReason]:
        disk = self._replicas.disk
        assert disk is not None
        started: dict[BlockKey, Promotion | MissReason] = {}
        by_length: dict[int, list[BlockInfo]] = {}
        for key in keys:
            if (info := disk.info(key)) is None:
                started[key] = MissReason.EVICTED
            elif self._bytes + info.length_bytes > self._max_bytes:
                started[key] = MissReason.LATE
            else:
                self._bytes += info.length_bytes
                by_length.setdefault(info.length_bytes, []).append(info)
        for length_bytes, infos in by_length.items():
            started.update(self._start_equal(infos, length_bytes))
        return started

    def _start_equal(
        self, infos: Sequence[BlockInfo], length_bytes: int
    ) -> Iterator[tuple[BlockKey, Promotion | MissReason]]:
        """Start loads of blocks of one length."""
        reserved = self._replicas.host.reserve([info.key for info in infos], length_bytes)
        self._replicas.evicted(TierKind.HOST, reserved.evicted)
        slots = iter(reserved.slots)
        loads = []
        for info, outcome in zip(infos, reserved.outcomes, strict=True):
            if outcome is ReserveOutcome.RESERVED:
                loads.append(_Load(info, next(slots)))
                continue
            self._bytes -= length_bytes
            no_space = outcome is ReserveOutcome.NO_SPACE
            # Else a corrupt replica is in the way, dropped but still under some reader's lease.
            yield info.key, MissReason.NO_SPACE if no_space else MissReason.CORRUPT
        for batch in _batches(loads):
            yield from self._start_batch(batch)

    def _start_batch(self, loads: Sequence[_Load]) -> Iterator[tuple[BlockKey, Promotion]]:
        loop = asyncio.get_running_loop()
        for load in loads:
            promotion = Promotion(loop.create_future())
            self._running[load.info.key] = promotion
            yield load.info.key, promotion
        task = loop.create_task(self._load(loads))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _load(self, loads: Sequence[_Load]) -> None:
        keys = [load.info.key for load in loads]
        views = [self._replicas.host.view(load.slot) for load in loads]
        disk = self._replicas.disk
        assert disk is not None
        loop = asyncio.get_running_loop()
        results: Sequence[MissReason | None]
        try:
            results = await loop.run_in_executor(self._executor, disk.load, keys, views)
        except Exception:  # the boundary of this task: its claimants must be told in any case
            _LOG.exception("the disk tier failed to load %d blocks", len(keys))
            results = [MissReason.FAILED] * len(keys)
        self._bytes -= sum(load.info.length_bytes for load in loads)
        self._publish(loads, results)

    def _publish(self, loads: Sequence[_Load], results: Sequence[MissReason | None]) -> None:
        host = self._replicas.host
        ends = list(zip((load.info for load in loads), results, strict=True))
        good = [info for info, miss in ends if miss is None]
        corrupt = [info.key for info, miss in ends if miss is MissReason.CORRUPT]
        failed = [info.key for info, miss in ends if miss not in (None, MissReason.CORRUPT)]
        good_keys = [info.key for info in good]
        host.commit(good_keys, [i.length_bytes for i in good], [i.checksum for i in good])
        host.acquire(good_keys)
        host.abort(corrupt + failed)
        self._replicas.stored(TierKind.HOST, good_keys)
        self._replicas.corrupt(TierKind.DISK, corrupt)
        self._replicas.lost(TierKind.DISK, failed)
        for info, miss in ends:
            self._settle(info.key, miss)

    def _settle(self, key: BlockKey, miss: MissReason | None) -> None:
        promotion = self._running.pop(key)
        promotion.future.set_result(miss)
        if miss is None and promotion.num_claims:
            promotion.held = True
        elif miss is None:
            self._replicas.host.release([key])


def _promotions(claims: dict[BlockKey, Promotion | MissReason]) -> Iterator[Promotion]:
    return (claim for claim in claims.values() if isinstance(claim, Promotion))


def _result(claim: Promotion | MissReason) -> MissReason | None:
    if isinstance(claim, MissReason):
        return claim
    return claim.future.result() if claim.future.done() else MissReason.LATE


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

"""The life of every block of a node, for all its sessions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace

from kvstore.core.errors import LayoutMismatchError, UnavailableError
from kvstore.core.ids import BlockKey, BlockKeys, LeaseId, ReservationId, SessionId
from kvstore.core.layout import KVLayout
from kvstore.core.ports import Clock
from kvstore.events.base import EventSink
from kvstore.node.promotion import Promoter
from kvstore.node.reading import Acquired, Leases
from kvstore.node.replicas import Replicas
from kvstore.node.sessions import Reservation, Session, Sessions
from kvstore.node.write_through import WriteThrough
from kvstore.node.writing import CommittedBlock, Reservations
from kvstore.tiers.base import (
    AddressableTier,
    MissReason,
    ReserveOutcome,
    Tier,
    TierKind,
    TierStatistics,
)
from kvstore.transports.process import ProcessIdentity

QUEUED_SHARE = 0.5
"""Part of the host tier that may wait to be written to disk, and cannot be evicted meanwhile."""
PROMOTED_SHARE = 0.5
"""Part of the host tier that may be on its way up from disk."""


@dataclass(frozen=True, slots=True)
class ManagerStatistics:
    """A frozen snapshot. Hits count over the blocks acquired, by the tier they were found in."""

    tiers: Sequence[TierStatistics]
    misses: Mapping[MissReason, int]
    sessions: int
    leases: int
    reservations: int
    write_through_skipped: int
    orphaned_blocks: int


class BlockManager:
    """Verbs of the store over a host tier and, where there is one, a disk tier.

    Owned by one event loop: every method is called on it, state is decided synchronously, and only
    disk work leaves it, for `executor`. Nothing here waits without a bound: `acquire` ends within
    its `wait_s`. Call `tick` a few times a second, and `stop` before closing the tiers.
    """

    def __init__(
        self,
        host: AddressableTier,
        disk: Tier | None,
        sink: EventSink,
        executor: Executor,
        clock: Clock,
        ttl_s: float,
    ) -> None:
        self._replicas = Replicas(host, disk, sink)
        self._sessions = Sessions(clock, ttl_s)
        self._reservations = Reservations(self._replicas, self._write_through, clock, ttl_s)
        capacity_bytes = host.statistics().capacity_bytes
        queued_bytes = int(capacity_bytes * QUEUED_SHARE)
        promoted_bytes = int(capacity_bytes * PROMOTED_SHARE)
        self._writer = (
            WriteThrough(self._replicas, executor, queued_bytes) if disk is not None else None
        )
        self._promoter = (
            Promoter(self._replicas, executor, promoted_bytes) if disk is not None else None
        )
        self._leases = Leases(
            self._replicas, self._sessions, self._promoter, executor, clock, ttl_s
        )
        self._draining = False

    def open_session(
        self, client_name: str, process: ProcessIdentity | None, layouts: Iterable[KVLayout]
    ) -> Session:
        """`process` is the client's where it may map the arena, else None."""
        self._refuse_if_draining()
        block_bytes = {layout.fingerprint: layout.block_bytes for layout in layouts}
        return self._sessions.open(client_name, process, block_bytes)

    def keep_alive(self, session_id: SessionId) -> None:
        self._sessions.use(session_id)

    def close_session(self, session_id: SessionId) -> None:
        """Free all that the session holds. Idempotent; also ends what an expired one left behind.

        The client says by this call that none of its writers writes any more.
        """
        session = self._sessions.remove(session_id)
        if session is not None:
            self._leases.expire(session, all_=True)
        self._reservations.close(session, session_id)

    def match(self, keys: BlockKeys) -> list[TierKind]:
        """Fastest tier of each key of the longest prefix present."""
        tiers: list[TierKind] = []
        for key in keys:
            if (tier := self._replicas.tier_of(key)) is None:
                break
            tiers.append(tier)
        return tiers

    def reserve(
        self,
        session_id: SessionId,
        keys: BlockKeys,
        block_bytes: int,
        reservation_id: ReservationId,
    ) -> tuple[Reservation, Sequence[ReserveOutcome]]:
        """`reservation_id` is the client's choice, so that it can abort one whose answer it never
        got; 0 = the node chooses."""
        self._refuse_if_draining()
        session = self._sessions.use(session_id)
        if session.layouts and keys.layout not in session.layouts:
            raise LayoutMismatchError(
                f"keys.layout_fingerprint {keys.layout.hex()} is none of the layouts that the "
                "session was opened with; open it with every layout it writes"
            )
        return self._reservations.reserve(session, list(keys), block_bytes, reservation_id)

    def commit(
        self, session_id: SessionId, reservation_id: ReservationId, blocks: Sequence[CommittedBlock]
    ) -> None:
        self._reservations.commit(self._sessions.use(session_id), reservation_id, blocks)

    def write(
        self,
        session_id: SessionId,
        reservation_id: ReservationId,
        index: int,
        start_byte: int,
        data: bytes,
    ) -> None:
        session = self._sessions.use(session_id)
        self._reservations.write(session, reservation_id, index, start_byte, data)

    def abort(self, session_id: SessionId, reservation_id: ReservationId) -> None:
        session = self._sessions.find(session_id)
        self._reservations.abort(session, session_id, reservation_id)

    async def acquire(self, session_id: SessionId, keys: BlockKeys, wait_s: float) -> Acquired:
        return await self._leases.acquire(self._sessions.use(session_id), list(keys), wait_s)

    def release(self, session_id: SessionId, lease_ids: Iterable[LeaseId]) -> None:
        self._leases.release(self._sessions.use(session_id), lease_ids)

    def num_found(self, session_id: SessionId, lease_id: LeaseId) -> int:
        return self._leases.num_found(self._sessions.use(session_id), lease_id)

    def read(
        self, session_id: SessionId, lease_id: LeaseId, index: int, start_byte: int, size: int
    ) -> bytes:
        session = self._sessions.use(session_id)
        return self._leases.read(session, lease_id, index, start_byte, size)

    async def report(self, session_id: SessionId, lease_id: LeaseId, indices: Sequence[int]) -> int:
        return await self._leases.report(self._sessions.use(session_id), lease_id, indices)

    def tick(self) -> None:
        """End what is out of time, give back what the dead left, keep the host tier below its
        mark."""
        for session in self._sessions.remove_ended():
            self._leases.expire(session, all_=True)
            self._reservations.expire(session, all_=True)
        for session in self._sessions.all():
            self._leases.expire(session)
            self._reservations.expire(session)
        self._reservations.free_orphans()
        self._replicas.evict_to_low_watermark()

    async def stop(self, flush_s: float) -> None:
        """Refuse new writes, write queued blocks to disk for at most `flush_s`, end disk work."""
        self._draining = True
        if self._writer is not None:
            await self._writer.stop(flush_s)
        if self._promoter is not None:
            await self._promoter.stop()

    def inventory(self) -> list[tuple[TierKind, BlockKeys]]:
        return self._replicas.inventory()

    def statistics(self) -> ManagerStatistics:
        tiers = [self._replicas.host.statistics()]
        tiers[0] = replace(tiers[0], corruptions=tiers[0].corruptions + self._leases.num_corrupt)
        if self._replicas.disk is not None:
            tiers.append(self._replicas.disk.statistics())
        sessions = self._sessions.all()
        return ManagerStatistics(
            tiers=[replace(tier, hits=self._leases.hits[tier.kind]) for tier in tiers],
            misses=dict(self._leases.misses),
            sessions=len(sessions),
            leases=sum(len(session.leases) for session in sessions),
            reservations=sum(len(session.reservations) for session in sessions),
            write_through_skipped=self._writer.num_skipped if self._writer else 0,
            orphaned_blocks=self._reservations.num_orphaned_blocks,
        )

    def _write_through(self, keys: Sequence[BlockKey]) -> None:
        if self._writer is not None:
            self._writer.offer([key for key in keys if not self._replicas.on_disk(key)])

    def _refuse_if_draining(self) -> None:
        if self._draining:
            raise UnavailableError("the node is stopping; retry on another or after its restart")

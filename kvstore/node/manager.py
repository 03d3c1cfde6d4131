"""The life of every block of a node, for all its sessions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor

from kvstore.core.errors import UnavailableError
from kvstore.core.ids import (
    BlockKey,
    BlockKeys,
    LayoutFingerprint,
    LeaseId,
    ReservationId,
    SessionId,
)
from kvstore.core.layout import KVLayout
from kvstore.core.ports import Clock
from kvstore.events.base import EventSink
from kvstore.events.tee import TeeSink
from kvstore.node.admission import Admission
from kvstore.node.arrivals import Arrivals
from kvstore.node.bulk import BulkAccess
from kvstore.node.config import NodeConfig
from kvstore.node.demotion import make_demotion
from kvstore.node.incoming import Incoming, Prefetched
from kvstore.node.keeper import Keeper
from kvstore.node.pins import Pins
from kvstore.node.promotion import Promoter
from kvstore.node.pull.heat import ReplicaHeat
from kvstore.node.pull.replication import EverywhereMatch, Replication, ReplicationConfig
from kvstore.node.pull.space import HeatSink
from kvstore.node.reading import Acquired, ConfirmedLease, Leases
from kvstore.node.removal import Removal
from kvstore.node.replicas import Replicas
from kvstore.node.retention import RetentionRange
from kvstore.node.sessions import Reservation, Session, Sessions
from kvstore.node.source import Source
from kvstore.node.statistics import ManagerStatistics, collect
from kvstore.node.streaming import Streams
from kvstore.node.tenants import DEFAULT_TENANT, Tenants
from kvstore.node.writing import CommittedBlock, Reservations
from kvstore.tiers.base import (
    AddressableTier,
    ReserveOutcome,
    Tier,
    TierKind,
)
from kvstore.transports.process import ProcessIdentity

LearnLayout = Callable[[LayoutFingerprint, KVLayout], None]

PROMOTED_SHARE = 0.5
"""Part of the host tier that may be on its way up from disk."""


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
        config: NodeConfig,
        replication: ReplicationConfig,
    ) -> None:
        ttl_s = config.lease_ttl_ms / 1000
        heat = ReplicaHeat(clock)
        self._replicas = Replicas(host, disk, TeeSink(sink, HeatSink(heat)))
        self._sessions = Sessions(clock, ttl_s)
        self._tenants = Tenants(config.quotas, host.bytes_of)
        arrivals = Arrivals(self._replicas)
        streams = Streams(host, arrivals)
        self.bulk = BulkAccess()
        """For threads that send and receive bytes: the one part that they may use."""
        self._reservations = Reservations(
            self._replicas, self._committed, self.bulk, streams, clock, ttl_s
        )
        capacity_bytes = host.statistics().capacity_bytes
        promoted_bytes = int(capacity_bytes * PROMOTED_SHARE)
        self._demotion = (
            make_demotion(self._replicas, executor, config) if disk is not None else None
        )
        if self._demotion is not None:
            host.guard = self._demotion.guard
        self._admission = Admission(self._replicas, self._tenants, self._demotion)
        self._replicas.admit = self._admission.reserve
        self._replicas.left_host = self._left_host
        self._pins = Pins(self._replicas, clock, int(capacity_bytes * config.pin_share))
        sources: list[Source] = []
        if disk is not None:
            sources.append(Promoter(disk, self._replicas, arrivals, executor, promoted_bytes))
        self._replication = Replication(
            replication, self._replicas, arrivals, heat, executor, clock, self._committed
        )
        sources.append(self._replication.puller)
        self._incoming = Incoming(self._replicas, arrivals, sources)
        self._leases = Leases(
            self._replicas,
            self._sessions,
            self._incoming,
            self._read,
            self.bulk,
            streams,
            executor,
            clock,
            ttl_s,
        )
        removal = Removal(self._replicas, arrivals, self._demotion, executor)
        self.keeper = Keeper(
            self._sessions.use_owner,
            self._replicas,
            self._leases,
            self._pins,
            removal,
            self._tenants,
        )
        self._draining = False
        self.learn_layout: LearnLayout | None = None
        """Told the layout of the blocks that come with a fingerprint. Set it before the first
        session."""

    def open_session(
        self,
        client_name: str,
        process: ProcessIdentity | None,
        layouts: Iterable[KVLayout],
        *,
        tenant: str = DEFAULT_TENANT,
        peer: bool = False,
    ) -> Session:
        """`process` is the client's where it may map the arena, else None. A `peer` is another
        node, whose keys have their tenant folded in already."""
        self._refuse_if_draining()
        block_bytes = {}
        for layout in () if peer else layouts:
            folded = self._tenants.enter(tenant, layout.fingerprint)
            block_bytes[folded] = layout.block_bytes
            if self.learn_layout is not None:
                self.learn_layout(folded, layout)
        return self._sessions.open(client_name, process, block_bytes, tenant=tenant, peer=peer)

    def fold(self, session_id: SessionId, keys: BlockKeys) -> BlockKeys:
        """The keys of a session's call as this node knows them: its tenant is folded in. All other
        verbs take such keys. Session 0 is nobody's: it names blocks of the default tenant."""
        if session_id == 0:
            return self._tenants.fold(DEFAULT_TENANT, keys)
        session = self._sessions.use(session_id)
        return keys if session.peer else self._tenants.fold(session.tenant, keys)

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
        return self._replicas.prefix_tiers(keys)

    def reserve(
        self,
        session_id: SessionId,
        keys: BlockKeys,
        block_bytes: int,
        reservation_id: ReservationId,
        retention: Sequence[RetentionRange] = (),
    ) -> tuple[Reservation, Sequence[ReserveOutcome]]:
        """`reservation_id` is the client's choice, so that it can abort one whose answer it never
        got; 0 = the node chooses. `retention` takes effect when the blocks are committed.

        Raises QuotaExceededError for a block larger than its tenant's quota.
        """
        self._refuse_if_draining()
        session = self._sessions.use_owner(session_id)
        session.check_layout(keys, block_bytes)
        wanted = list(keys)
        self._admission.check(wanted, block_bytes)
        return self._reservations.reserve(session, wanted, block_bytes, reservation_id, retention)

    def commit(
        self, session_id: SessionId, reservation_id: ReservationId, blocks: Sequence[CommittedBlock]
    ) -> None:
        self._reservations.commit(self._sessions.use(session_id), reservation_id, blocks)

    def abort(self, session_id: SessionId, reservation_id: ReservationId) -> None:
        session = self._sessions.find(session_id)
        self._reservations.abort(session, session_id, reservation_id)

    async def match_everywhere(self, keys: BlockKeys) -> EverywhereMatch:
        """The same, counting also what other nodes hold, as far as this one knows of them."""
        return await self._replication.match(list(keys))

    async def acquire(
        self,
        session_id: SessionId,
        keys: BlockKeys,
        wait_s: float,
        *,
        local: bool = False,
        streaming: bool = False,
    ) -> Acquired:
        """`local`: nothing from other nodes. What a peer asks for always is."""
        session = self._sessions.use(session_id)
        local = local or session.peer
        return await self._leases.acquire(
            session, list(keys), wait_s, local=local, streaming=streaming
        )

    def acquire_now(self, session_id: SessionId, keys: BlockKeys) -> Acquired | None:
        """The same of blocks that are all in host memory; None if one is not."""
        return self._leases.acquire_now(self._sessions.use(session_id), list(keys))

    async def confirm(
        self, session_id: SessionId, lease_id: LeaseId, wait_s: float
    ) -> ConfirmedLease:
        """What became of the blocks of a lease that were found while they were written."""
        return await self._leases.confirm(self._sessions.use(session_id), lease_id, wait_s)

    async def prefetch(
        self, session_id: SessionId, keys: BlockKeys, *, local: bool = False
    ) -> Prefetched:
        """Start bringing up what is not in the host tier, without a lease and without waiting."""
        self._refuse_if_draining()
        session = self._sessions.use(session_id)
        return await self._incoming.prefetch(list(keys), local=local or session.peer)

    def release(self, session_id: SessionId, lease_ids: Iterable[LeaseId]) -> None:
        self._leases.release(self._sessions.use(session_id), lease_ids)

    def num_found(self, session_id: SessionId, lease_id: LeaseId) -> int:
        return self._leases.num_found(self._sessions.use(session_id), lease_id)

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
        self._replication.tick()
        self._pins.expire()
        self._replicas.evict_to_low_watermark()
        if self._demotion is not None:
            self._demotion.tick()

    async def stop(self, flush_s: float) -> None:
        """Refuse new writes, write queued blocks to disk for at most `flush_s`, end disk work."""
        self._draining = True
        if self._demotion is not None:
            await self._demotion.stop(flush_s)
        await self._incoming.stop()

    def inventory(self) -> list[tuple[TierKind, BlockKeys]]:
        return self._replicas.inventory()

    def statistics(self) -> ManagerStatistics:
        return collect(
            self._replicas,
            self._sessions,
            self._leases,
            self._reservations,
            self._replication,
            write_through_skipped=self._demotion.num_skipped if self._demotion else 0,
            tenants=self._tenants.usage(),
            pinned_bytes=self._pins.pinned_bytes,
        )

    def _committed(self, keys: Sequence[BlockKey]) -> None:
        if self._demotion is not None:
            self._demotion.committed(keys)

    def _read(self, keys: Sequence[BlockKey]) -> None:
        self._replication.read(keys)
        if self._demotion is not None:
            self._demotion.used(keys)

    def _left_host(self, keys: Sequence[BlockKey]) -> None:
        self._pins.unpin(keys)
        if self._demotion is not None:
            self._demotion.left(keys)

    def _refuse_if_draining(self) -> None:
        if self._draining:
            raise UnavailableError("the node is stopping; retry on another or after its restart")

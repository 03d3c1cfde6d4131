"""NodeService: messages in, verbs of the block manager, messages out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import cast

from google.protobuf.message import Message

from kvstore.core.errors import InvalidArgumentError, PermissionDeniedError, UnavailableError
from kvstore.core.ids import BLOCK_HASH_BYTES, BlockKeys, LeaseId, ReservationId, SessionId
from kvstore.core.ports import Clock
from kvstore.directory.base import NodeRecord
from kvstore.directory.records import to_wire
from kvstore.node import validation
from kvstore.node.keeping_service import KeepingService
from kvstore.node.manager import BlockManager
from kvstore.node.messages import (
    acquired_message,
    everywhere_message,
    miss_counts,
    peer_message,
    tenant_message,
    tier_message,
)
from kvstore.node.tenants import check_peer, check_tenant
from kvstore.transports.base import Handler, PromptHandler
from kvstore.transports.process import ProcessIdentity
from kvstore.transports.security.caller import authorize_session, authorize_tenant
from kvstore.wire.v1 import block_pb2, node_pb2

READ_PIECE_BYTES = 1 << 20
"""Bytes of one message of Read: well below the message limit of every transport."""


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What sessions and statistics tell of the node itself."""

    node_id: str
    boot_id: int
    arena_path: str
    arena_bytes: int
    max_block_bytes: int
    lease_ttl_ms: int


class NodeService:
    """Handlers of NodeService by name, for any transport. Lives on the node's event loop."""

    def __init__(
        self,
        manager: BlockManager,
        facts: NodeFacts,
        clock: Clock,
        last_event_sequence: Callable[[], int],
    ) -> None:
        self._manager = manager
        self._facts = facts
        self._last_event_sequence = last_event_sequence
        self._clock = clock
        self._started_s = clock()
        self.grpc_port = 0
        """Known once the gRPC server listens."""
        self.bulk_port = 0
        """Known once the ZeroMQ server of bulk bytes listens."""
        self.local_endpoint = ""
        """Known once the Unix socket listens."""
        self.record: NodeRecord | None = None
        """Known once all servers listen."""

    def handlers(self) -> dict[str, Handler]:
        """The unary methods. `write` and `read` are streams, which gRPC alone serves."""
        methods = {
            "OpenSession": self._open_session,
            "CloseSession": self._close_session,
            "Match": self._match,
            "Prefetch": self._prefetch,
            "Describe": self._describe,
            "Acquire": self._acquire,
            "Report": self._report,
            "Confirm": self._confirm,
            "Statistics": self._statistics,
        }
        unary = {name: cast(Handler, method) for name, method in methods.items()}
        unary |= {name: _awaitable(method) for name, method in self._never_waiting().items()}
        return unary | KeepingService(self._manager).handlers()

    def prompt_handlers(self) -> dict[str, PromptHandler]:
        """Methods that never wait, and Acquire, which does not for blocks that are in host
        memory."""
        return {"Acquire": cast(PromptHandler, self._acquire_now), **self._never_waiting()}

    def _never_waiting(self) -> dict[str, Callable[[Message], Message]]:
        methods = {
            "KeepAlive": self._keep_alive,
            "Reserve": self._reserve,
            "Commit": self._commit,
            "Abort": self._abort,
            "Release": self._release,
        }
        return {
            name: cast(Callable[[Message], Message], method) for name, method in methods.items()
        }

    async def write(self, requests: AsyncIterator[node_pb2.WriteRequest]) -> node_pb2.WriteResponse:
        bytes_written = 0
        async for request in requests:
            self._manager.bulk.land(
                request.session_id,
                request.reservation_id,
                request.index,
                request.start_byte,
                memoryview(request.data),
            )
            bytes_written += len(request.data)
        return node_pb2.WriteResponse(bytes_written=bytes_written)

    async def read(self, request: node_pb2.ReadRequest) -> AsyncIterator[node_pb2.ReadResponse]:
        validation.check_count("indices", len(request.indices))
        session_id, lease_id = SessionId(request.session_id), LeaseId(request.lease_id)
        num_found = self._manager.num_found(session_id, lease_id)
        for index in request.indices or range(num_found):
            start_byte, data = 0, self._read_piece(request, index, 0)
            while data:
                yield node_pb2.ReadResponse(index=index, start_byte=start_byte, data=data)
                start_byte += len(data)
                data = self._read_piece(request, index, start_byte)

    def _read_piece(self, request: node_pb2.ReadRequest, index: int, start_byte: int) -> bytes:
        """Empty at the end of the block. Lent for each piece anew: a slow reader holds nothing."""
        loan = self._manager.bulk.lend(request.session_id, request.lease_id, [index])
        try:
            return bytes(loan.views[0][start_byte : start_byte + READ_PIECE_BYTES])
        finally:
            loan.give_back()

    async def _open_session(
        self, request: node_pb2.OpenSessionRequest
    ) -> node_pb2.OpenSessionResponse:
        process = _visible_process(request)
        session = self._manager.open_session(
            validation.check_name("client_name", request.client_name),
            process,
            validation.check_layouts(request.layouts, self._facts.max_block_bytes),
            tenant=_tenant(request),
            peer=request.peer,
        )
        return node_pb2.OpenSessionResponse(
            session_id=session.id,
            node_id=self._facts.node_id,
            boot_id=self._facts.boot_id,
            arena_path=self._facts.arena_path if process else "",
            arena_bytes=self._facts.arena_bytes,
            lease_ttl_ms=self._facts.lease_ttl_ms,
            grpc_port=self.grpc_port,
            bulk_port=self.bulk_port,
            local_endpoint=self.local_endpoint if process else "",
        )

    def _keep_alive(self, request: node_pb2.KeepAliveRequest) -> node_pb2.KeepAliveResponse:
        self._manager.keep_alive(SessionId(request.session_id))
        return node_pb2.KeepAliveResponse()

    async def _close_session(
        self, request: node_pb2.CloseSessionRequest
    ) -> node_pb2.CloseSessionResponse:
        self._manager.close_session(SessionId(request.session_id))
        return node_pb2.CloseSessionResponse()

    async def _match(self, request: node_pb2.MatchRequest) -> node_pb2.MatchResponse:
        keys = self._keys(request.session_id, request.keys)
        if request.remote:
            return everywhere_message(await self._manager.match_everywhere(keys))
        tiers = self._manager.match(keys)
        return node_pb2.MatchResponse(num_matched=len(tiers), tiers=bytes(tiers))

    async def _prefetch(self, request: node_pb2.PrefetchRequest) -> node_pb2.PrefetchResponse:
        prefetched = await self._manager.prefetch(
            SessionId(request.session_id),
            self._keys(request.session_id, request.keys),
            local=request.local,
        )
        return node_pb2.PrefetchResponse(
            num_resident=prefetched.num_resident, num_started=prefetched.num_started
        )

    async def _describe(self, request: node_pb2.DescribeRequest) -> node_pb2.DescribeResponse:
        if self.record is None:
            raise UnavailableError("the node is starting, or embedded; ask a node that serves")
        return node_pb2.DescribeResponse(node=to_wire(self.record))

    def _reserve(self, request: node_pb2.ReserveRequest) -> node_pb2.ReserveResponse:
        reservation, outcomes = self._manager.reserve(
            SessionId(request.session_id),
            self._keys(request.session_id, request.keys),
            validation.check_block_bytes(request.block_bytes, self._facts.max_block_bytes),
            ReservationId(request.reservation_id),
            validation.check_retention(
                request.retention, len(request.keys.block_hashes) // BLOCK_HASH_BYTES
            ),
        )
        return node_pb2.ReserveResponse(
            reservation_id=reservation.id,
            ttl_ms=self._facts.lease_ttl_ms,
            outcomes=bytes(outcomes),
            offsets=[slot.offset for slot in reservation.slots],
        )

    def _commit(self, request: node_pb2.CommitRequest) -> node_pb2.CommitResponse:
        self._manager.commit(
            SessionId(request.session_id),
            ReservationId(request.reservation_id),
            validation.check_committed(request),
        )
        return node_pb2.CommitResponse()

    def _abort(self, request: node_pb2.AbortRequest) -> node_pb2.AbortResponse:
        self._manager.abort(SessionId(request.session_id), ReservationId(request.reservation_id))
        return node_pb2.AbortResponse()

    async def _acquire(self, request: node_pb2.AcquireRequest) -> node_pb2.AcquireResponse:
        acquired = await self._manager.acquire(
            SessionId(request.session_id),
            self._keys(request.session_id, request.keys),
            validation.check_wait_s(request.wait_ms),
            local=request.local,
            streaming=request.streaming,
        )
        return acquired_message(acquired, self._facts.lease_ttl_ms)

    def _acquire_now(self, request: node_pb2.AcquireRequest) -> node_pb2.AcquireResponse | None:
        keys = self._keys(request.session_id, request.keys)
        acquired = self._manager.acquire_now(SessionId(request.session_id), keys)
        if acquired is None:
            return None
        return acquired_message(acquired, self._facts.lease_ttl_ms)

    async def _confirm(self, request: node_pb2.ConfirmRequest) -> node_pb2.ConfirmResponse:
        confirmed = await self._manager.confirm(
            SessionId(request.session_id),
            LeaseId(request.lease_id),
            validation.check_wait_s(request.wait_ms),
        )
        residents, misses = confirmed.lease.residents, confirmed.misses
        return node_pb2.ConfirmResponse(
            miss_reasons=bytes(misses.get(index, 0) for index in range(len(residents))),
            checksums=[
                0 if index in misses else resident.checksum
                for index, resident in enumerate(residents)
            ],
        )

    def _release(self, request: node_pb2.ReleaseRequest) -> node_pb2.ReleaseResponse:
        validation.check_count("lease_ids", len(request.lease_ids))
        self._manager.release(
            SessionId(request.session_id), [LeaseId(lease_id) for lease_id in request.lease_ids]
        )
        return node_pb2.ReleaseResponse()

    async def _report(self, request: node_pb2.ReportRequest) -> node_pb2.ReportResponse:
        validation.check_count("indices", len(request.indices))
        num_dropped = await self._manager.report(
            SessionId(request.session_id), LeaseId(request.lease_id), request.indices
        )
        return node_pb2.ReportResponse(num_dropped=num_dropped)

    async def _statistics(self, request: node_pb2.StatisticsRequest) -> node_pb2.StatisticsResponse:
        statistics = self._manager.statistics()
        return node_pb2.StatisticsResponse(
            node_id=self._facts.node_id,
            boot_id=self._facts.boot_id,
            uptime_s=self._clock() - self._started_s,
            tiers=map(tier_message, statistics.tiers),
            misses=miss_counts(statistics.misses),
            sessions=statistics.sessions,
            leases=statistics.leases,
            reservations=statistics.reservations,
            last_event_sequence=self._last_event_sequence(),
            write_through_skipped=statistics.write_through_skipped,
            orphaned_blocks=statistics.orphaned_blocks,
            tenants=map(tenant_message, statistics.tenants),
            pinned_bytes=statistics.pinned_bytes,
            peers=map(peer_message, statistics.peers),
            replica_bytes=statistics.replica_bytes,
        )

    def _keys(self, session_id: int, keys: block_pb2.BlockKeys) -> BlockKeys:
        """The keys of a call as this node knows them, with the session's tenant folded in."""
        if not session_id and authorize_tenant(""):
            raise PermissionDeniedError(
                "without a session only the default tenant's blocks can be asked for; open one"
            )
        return self._manager.fold(SessionId(session_id), validation.check_keys(keys))


def _awaitable(method: Callable[[Message], Message]) -> Handler:
    async def handler(request: Message) -> Message:
        return method(request)

    return handler


def _tenant(request: node_pb2.OpenSessionRequest) -> str:
    check_peer(check_tenant("tenant", request.tenant), peer=request.peer)
    return check_tenant("tenant", authorize_session(request.tenant, peer=request.peer))


def _visible_process(request: node_pb2.OpenSessionRequest) -> ProcessIdentity | None:
    """The client's process, or None where it must not map the arena.

    The node has to see a process die before it reuses memory that the process may write. One in
    another pid namespace, like one on another host, it cannot see: it gets no arena.
    """
    if request.pid == 0:
        return None
    if request.pid > 0x7FFFFFFF:
        raise InvalidArgumentError(f"pid must be a process id, got {request.pid}")
    process = ProcessIdentity(request.pid, request.process_start)
    return process if process.can_run() else None

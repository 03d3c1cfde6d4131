"""The methods of ConductorService: messages in and out of the conductor, by whatever way."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping

from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from cluster.conductor.conductor import Conductor
from cluster.membership.convert import (
    identifier,
    lifetime_from,
    load_from,
    member_from,
    outcome_from,
    request_from,
    status_to,
)
from cluster.membership.convert_placement import explanation_to, placement_to
from cluster.membership.desk import Desk
from cluster.membership.reservations import Reservations
from cluster.membership.views import Views
from cluster.wire.v1 import conductor_pb2 as pb
from kvstore.core.errors import KVStoreError, NotFoundError
from kvstore.core.ids import MemberId, RequestId, ReservationId
from kvstore.core.ports import Clock
from kvstore.transports.security.caller import Role, authorize_tenant, current_caller, require_role

Method = Callable[[Message], Awaitable[Message]]

SERVICE = pb.DESCRIPTOR.services_by_name["ConductorService"]
REQUEST_TYPES: Mapping[str, type[Message]] = {
    method.name: GetMessageClass(method.input_type) for method in SERVICE.methods
}
RESPONSE_TYPES: Mapping[str, type[Message]] = {
    method.name: GetMessageClass(method.output_type) for method in SERVICE.methods
}


class ConductorMethods:
    """One event loop serves all calls, so the conductor needs no lock. Raises errors of
    `kvstore.core.errors`; whoever carries the messages turns them into its own.

    A call that is cancelled takes back what it asked for.
    """

    def __init__(
        self,
        conductor: Conductor,
        desk: Desk,
        views: Views,
        reservations: Reservations,
        clock: Clock,
        ttl_ms: int,
    ) -> None:
        self._conductor = conductor
        self._desk = desk
        self._views = views
        self._reservations = reservations
        self._clock = clock
        self._ttl_ms = ttl_ms

    async def call(self, method: str, request: Message) -> Message:
        handler: Method = getattr(self, method)
        return await handler(request)

    async def Register(self, request: pb.RegisterRequest) -> pb.RegisterResponse:  # noqa: N802
        require_role(Role.PEER)
        member = member_from(request.member)
        feed = self._conductor.register(member, request.epoch)
        if feed is not None:
            try:
                await self._views.open(member, request.epoch, feed)
            except KVStoreError:
                self._conductor.forget(member.member_id)
                raise
        self._desk.changed()
        return pb.RegisterResponse(ttl_ms=self._ttl_ms)

    async def Heartbeat(self, request: pb.HeartbeatRequest) -> pb.HeartbeatResponse:  # noqa: N802
        require_role(Role.PEER)
        load = load_from(request.load)
        self._conductor.heartbeat(MemberId(request.member_id), request.epoch, load)
        self._desk.changed()
        return pb.HeartbeatResponse()

    async def Drain(self, request: pb.DrainRequest) -> pb.DrainResponse:  # noqa: N802
        require_role(Role.PEER)
        member_id = MemberId(request.member_id)
        self._conductor.drain(member_id)
        await self._views.close(member_id)
        return pb.DrainResponse()

    async def ListMembers(  # noqa: N802
        self, request: pb.ListMembersRequest
    ) -> pb.ListMembersResponse:
        return pb.ListMembersResponse(members=map(status_to, self._conductor.members()))

    async def Route(self, request: pb.RouteRequest) -> pb.RouteResponse:  # noqa: N802
        asked = request_from(request, authorize_tenant(request.tenant))
        self._reservations.end_of(asked.request_id)
        return placement_to(await self._desk.place(asked))

    async def Complete(self, request: pb.CompleteRequest) -> pb.CompleteResponse:  # noqa: N802
        outcome = outcome_from(request, RequestId(request.request_id))
        self._reservations.end_of(outcome.request_id)
        self._conductor.complete(outcome)
        self._desk.changed()
        return pb.CompleteResponse()

    async def Reserve(self, request: pb.ReserveRequest) -> pb.ReserveResponse:  # noqa: N802
        lifetime_s = lifetime_from(request.lifetime_ms)
        self._reservations.check_room()
        placement = await self.Route(request.request)
        reservation_id = ReservationId(secrets.randbits(63))
        request_id = RequestId(request.request.request_id)
        self._reservations.add(reservation_id, request_id, self._clock() + lifetime_s)
        return pb.ReserveResponse(
            reservation_id=reservation_id,
            placement=placement,
            lifetime_ms=round(lifetime_s * 1000),
        )

    async def Release(self, request: pb.ReleaseRequest) -> pb.ReleaseResponse:  # noqa: N802
        outcome = outcome_from(request.outcome, RequestId(""))  # checked even if it is over
        request_id = self._reservations.end(ReservationId(request.reservation_id))
        if request_id is not None:
            if request.HasField("outcome"):
                outcome = outcome_from(request.outcome, request_id)
                self._conductor.complete(outcome)
            else:
                self._conductor.cancel(request_id)
            self._desk.changed()
        return pb.ReleaseResponse()

    async def Explain(self, request: pb.ExplainRequest) -> pb.ExplainResponse:  # noqa: N802
        request_id = RequestId(identifier("request_id", request.request_id))
        explanation = self._conductor.explain(request_id)
        if explanation is None or not _may_see(explanation.request.tenant):
            raise NotFoundError(
                f"request {request_id!r} is not one of the last that were placed or refused"
            )
        return explanation_to(explanation, self._clock())


def _may_see(tenant: str) -> bool:
    own = current_caller().tenant
    return own is None or own == tenant

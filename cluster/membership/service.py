"""ConductorService over gRPC: messages in and out of the conductor."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any, TypeAlias, TypeVar

import grpc

from cluster.conductor.conductor import Conductor
from cluster.membership.convert import (
    load_from,
    member_from,
    outcome_from,
    placement_to,
    request_from,
    status_to,
)
from cluster.membership.views import Views
from cluster.wire.v1 import conductor_pb2 as pb
from cluster.wire.v1.conductor_pb2_grpc import ConductorServiceServicer
from kvstore.core.errors import KVStoreError
from kvstore.core.ids import MemberId
from kvstore.transports.security.caller import Role, require_role
from kvstore.transports.status import abort

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Q = TypeVar("Q")
R = TypeVar("R")
Method = Callable[["ConductorService", Q, Context], Awaitable[R]]


def _typed_errors(method: Method[Q, R]) -> Method[Q, R]:
    """Errors of the project become status codes; gRPC itself reports defects."""

    @wraps(method)
    async def answered(self: ConductorService, request: Q, context: Context) -> R:
        try:
            return await method(self, request, context)
        except KVStoreError as error:
            await abort(context, error)

    return answered


class ConductorService(ConductorServiceServicer):
    """One loop serves all calls, so the conductor needs no lock."""

    def __init__(self, conductor: Conductor, views: Views, ttl_ms: int) -> None:
        self._conductor = conductor
        self._views = views
        self._ttl_ms = ttl_ms

    @_typed_errors
    async def Register(  # noqa: N802
        self, request: pb.RegisterRequest, context: Context
    ) -> pb.RegisterResponse:
        require_role(Role.PEER)
        member = member_from(request.member)
        feed = self._conductor.register(member, request.epoch)
        if feed is not None:
            try:
                await self._views.open(member, request.epoch, feed)
            except KVStoreError:
                self._conductor.forget(member.member_id)
                raise
        return pb.RegisterResponse(ttl_ms=self._ttl_ms)

    @_typed_errors
    async def Heartbeat(  # noqa: N802
        self, request: pb.HeartbeatRequest, context: Context
    ) -> pb.HeartbeatResponse:
        require_role(Role.PEER)
        load = load_from(request.load)
        self._conductor.heartbeat(MemberId(request.member_id), request.epoch, load)
        return pb.HeartbeatResponse()

    @_typed_errors
    async def Drain(  # noqa: N802
        self, request: pb.DrainRequest, context: Context
    ) -> pb.DrainResponse:
        require_role(Role.PEER)
        member_id = MemberId(request.member_id)
        self._conductor.drain(member_id)
        await self._views.close(member_id)
        return pb.DrainResponse()

    @_typed_errors
    async def ListMembers(  # noqa: N802
        self, request: pb.ListMembersRequest, context: Context
    ) -> pb.ListMembersResponse:
        return pb.ListMembersResponse(members=map(status_to, self._conductor.members()))

    @_typed_errors
    async def Route(  # noqa: N802
        self, request: pb.RouteRequest, context: Context
    ) -> pb.RouteResponse:
        return placement_to(self._conductor.route(request_from(request)))

    @_typed_errors
    async def Complete(  # noqa: N802
        self, request: pb.CompleteRequest, context: Context
    ) -> pb.CompleteResponse:
        self._conductor.complete(outcome_from(request))
        return pb.CompleteResponse()

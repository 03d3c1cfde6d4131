"""The conductor as the gateway and the members see it."""

from __future__ import annotations

from collections.abc import Awaitable
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc

from cluster.wire.v1 import conductor_pb2 as pb
from cluster.wire.v1.conductor_pb2_grpc import ConductorServiceStub
from kvstore.transports.grpc.channel import open_grpc
from kvstore.transports.security.interceptor import bearer
from kvstore.transports.security.keys import NO_CLIENT_KEYS, ClientKeys
from kvstore.transports.status import from_rpc_error

R = TypeVar("R")

_CHANNEL_OPTIONS = [
    # A restarted conductor should be found again within about a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


class ConductorClient:
    """One channel to the conductor at `address` (host:port), opened by the first call.

    Belongs to the event loop of its first call; any number of tasks of that loop may call. Every
    verb ends within its deadline and raises errors of `kvstore.core.errors`: UnavailableError while
    the conductor is away (the next call after it is back succeeds), DeadlineExceededError, or what
    the conductor answered. `close` when done, or use it as an async context manager.
    """

    def __init__(
        self, address: str, *, keys: ClientKeys = NO_CLIENT_KEYS, deadline_s: float = 5.0
    ) -> None:
        self._address = address
        self._keys = keys
        self._metadata = bearer(keys.token)
        self._deadline_s = deadline_s
        self._channel: grpc.aio.Channel | None = None

    async def route(
        self, request: pb.RouteRequest, *, deadline_s: float | None = None
    ) -> pb.RouteResponse:
        """Where the request should go, and why.

        Raises InvalidArgumentError for a model that nobody serves, UnavailableError when no worker
        of the needed role is there.
        """
        return await self._call(self._stub.Route(request, **self._options(deadline_s)))

    async def complete(
        self, request: pb.CompleteRequest, *, deadline_s: float | None = None
    ) -> None:
        """How a routed request went. Harmless for a request that the conductor does not know."""
        await self._call(self._stub.Complete(request, **self._options(deadline_s)))

    async def list_members(self, *, deadline_s: float | None = None) -> list[pb.MemberStatus]:
        request = pb.ListMembersRequest()
        response = await self._call(self._stub.ListMembers(request, **self._options(deadline_s)))
        return list(response.members)

    async def register(
        self, member: pb.Member, epoch: int, *, deadline_s: float | None = None
    ) -> float:
        """Join, or replace the same member of a smaller epoch. Returns the time to live in seconds.

        Raises IdentityMismatchError when other workers of that model name would compute other KV.
        """
        request = pb.RegisterRequest(member=member, epoch=epoch)
        response = await self._call(self._stub.Register(request, **self._options(deadline_s)))
        return float(response.ttl_ms) / 1000

    async def heartbeat(
        self, member_id: str, epoch: int, load: pb.Load, *, deadline_s: float | None = None
    ) -> None:
        """Raises SessionExpiredError if the conductor does not know this member: register again."""
        request = pb.HeartbeatRequest(member_id=member_id, epoch=epoch, load=load)
        await self._call(self._stub.Heartbeat(request, **self._options(deadline_s)))

    async def drain(self, member_id: str, *, deadline_s: float | None = None) -> None:
        """Take no new requests. Harmless for a member that the conductor does not know."""
        request = pb.DrainRequest(member_id=member_id)
        await self._call(self._stub.Drain(request, **self._options(deadline_s)))

    async def close(self) -> None:
        """Idempotent. Calls in flight end with UnavailableError."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def _stub(self) -> ConductorServiceStub:
        if self._channel is None:
            self._channel = open_grpc(self._address, self._keys, _CHANNEL_OPTIONS)
        return ConductorServiceStub(self._channel)  # type: ignore[no-untyped-call]

    def _options(self, deadline_s: float | None) -> dict[str, Any]:
        timeout = self._deadline_s if deadline_s is None else deadline_s
        return {"timeout": timeout, "metadata": self._metadata}

    async def _call(self, call: Awaitable[R]) -> R:
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, f"conductor at {self._address}") from error

"""What gateways, members and other engines ask of the conductor, wherever it runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self, TypeVar

from google.protobuf.message import Message

from cluster.wire.v1 import conductor_pb2 as pb

R = TypeVar("R", bound=Message)


class ConductorVerbs(ABC):
    """Belongs to the event loop of its first call; any number of tasks of that loop may call.

    Every verb ends within its deadline, in seconds, and raises errors of `kvstore.core.errors`:
    UnavailableError while the conductor is away (the next call after it is back succeeds),
    DeadlineExceededError, or what the conductor answered. `close` when done, or use it as an async
    context manager.
    """

    def __init__(self, deadline_s: float) -> None:
        """`deadline_s`: of calls that name none."""
        self._deadline_s = deadline_s

    async def route(
        self, request: pb.RouteRequest, *, deadline_s: float | None = None
    ) -> pb.RouteResponse:
        """Where the request should go, and why. May wait its turn, within the conductor's bound.

        Raises InvalidArgumentError for a model that nobody serves, UnavailableError when no worker
        of the needed role is there, OverloadedError where its targets cannot be met.
        """
        return await self._call("Route", request, pb.RouteResponse, deadline_s)

    async def complete(
        self, request: pb.CompleteRequest, *, deadline_s: float | None = None
    ) -> None:
        """How a routed request went. Harmless for a request that the conductor does not know."""
        await self._call("Complete", request, pb.CompleteResponse, deadline_s)

    async def reserve(
        self,
        request: pb.RouteRequest,
        *,
        lifetime_s: float | None = None,
        deadline_s: float | None = None,
    ) -> pb.ReserveResponse:
        """As `route`; it counts until `release`, or until its lifetime (one minute if none is
        given, 15 at most) is over."""
        lifetime_ms = 0 if lifetime_s is None else max(1, round(lifetime_s * 1000))
        reserve = pb.ReserveRequest(request=request, lifetime_ms=lifetime_ms)
        return await self._call("Reserve", reserve, pb.ReserveResponse, deadline_s)

    async def release(
        self,
        reservation_id: int,
        *,
        outcome: pb.CompleteRequest | None = None,
        deadline_s: float | None = None,
    ) -> None:
        """It is over; `outcome` tells how it went. Idempotent."""
        request = pb.ReleaseRequest(reservation_id=reservation_id, outcome=outcome)
        await self._call("Release", request, pb.ReleaseResponse, deadline_s)

    async def explain(
        self, request_id: str, *, deadline_s: float | None = None
    ) -> pb.ExplainResponse:
        """The terms of every worker for a request. Raises NotFoundError if it is not one of the
        last."""
        request = pb.ExplainRequest(request_id=request_id)
        return await self._call("Explain", request, pb.ExplainResponse, deadline_s)

    async def list_members(self, *, deadline_s: float | None = None) -> list[pb.MemberStatus]:
        request = pb.ListMembersRequest()
        response = await self._call("ListMembers", request, pb.ListMembersResponse, deadline_s)
        return list(response.members)

    async def register(
        self, member: pb.Member, epoch: int, *, deadline_s: float | None = None
    ) -> float:
        """Join, or replace the same member of a smaller epoch. Returns the time to live in seconds.

        Raises IdentityMismatchError when other workers of that model name would compute other KV.
        """
        request = pb.RegisterRequest(member=member, epoch=epoch)
        response = await self._call("Register", request, pb.RegisterResponse, deadline_s)
        return response.ttl_ms / 1000

    async def heartbeat(
        self, member_id: str, epoch: int, load: pb.Load, *, deadline_s: float | None = None
    ) -> None:
        """Raises SessionExpiredError if the conductor does not know this member: register again."""
        request = pb.HeartbeatRequest(member_id=member_id, epoch=epoch, load=load)
        await self._call("Heartbeat", request, pb.HeartbeatResponse, deadline_s)

    async def drain(self, member_id: str, *, deadline_s: float | None = None) -> None:
        """Take no new requests. Harmless for a member that the conductor does not know."""
        request = pb.DrainRequest(member_id=member_id)
        await self._call("Drain", request, pb.DrainResponse, deadline_s)

    @abstractmethod
    async def close(self) -> None:
        """Idempotent. Calls in flight end with UnavailableError."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def _call(
        self, method: str, request: Message, response_type: type[R], deadline_s: float | None
    ) -> R:
        response = await self._ask(
            method, request, self._deadline_s if deadline_s is None else deadline_s
        )
        assert isinstance(response, response_type)
        return response

    @abstractmethod
    async def _ask(self, method: str, request: Message, deadline_s: float) -> Message:
        """Call one method of ConductorService."""

"""How a client reaches a node. A transport carries protobuf messages; it knows nothing of what they
mean.

Bulk bytes do not pass here on one host: they are written and read in the shared arena.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from google.protobuf.message import Message

from kvstore.tiers.base import MissReason

R = TypeVar("R", bound=Message)

Handler = Callable[[Message], Awaitable[Message]]
"""What serves one method. Raises errors of `kvstore.core.errors`; a transport maps them to status
codes."""

PromptHandler = Callable[[Message], Message | None]
"""Serves one method without waiting for anything. None = what was asked for has to be waited for:
then the method's `Handler` is asked. Raises as that one does."""


class Channel(Protocol):
    """Connection to one node: many calls in flight, multiplexed, answered in any order.

    Bound: at most `max_in_flight` calls; further ones wait, within their deadline.
    """

    async def call(
        self, method: str, request: Message, response_type: type[R], *, deadline_s: float
    ) -> R:
        """Unary call of a method of NodeService, by its name in node.proto.

        Raises DeadlineExceededError, UnavailableError, or the error that the node answered with.
        """

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class BulkRead:
    """One leased block to fetch."""

    index: int
    """Counts over the blocks found by the lease."""
    into: memoryview
    """Writable, contiguous, of the block's length."""
    checksum: int


@dataclass(frozen=True, slots=True)
class BulkWrite:
    """One reserved block to fill."""

    index: int
    """Counts over the blocks of the reservation."""
    data: memoryview


BulkTransport = Literal["zmq", "grpc"]


class BulkChannel(Protocol):
    """Moves bytes of leased and reserved blocks where the arena cannot be mapped: between hosts.

    Many calls in flight, multiplexed over one connection. Bound: bytes in flight; a call that finds
    the bound reached waits, within its deadline. Frames go from and into the caller's memory with
    no copy in between but the transport's own. The suite is `kvstore.testing.bulk_conformance`.
    """

    transport: BulkTransport

    async def read(
        self, session_id: int, lease_id: int, blocks: Sequence[BulkRead], *, deadline_s: float
    ) -> list[MissReason | None]:
        """Fetch blocks of a lease, checksum verified; None where it went well: LATE, CORRUPT or
        FAILED elsewhere, and `into` is then undefined. Nothing is written into any `into` once the
        call has returned, been cancelled or raised. Raises only what the node answered for the
        call as a whole (SessionExpiredError, LeaseExpiredError...)."""

    async def write(
        self,
        session_id: int,
        reservation_id: int,
        blocks: Sequence[BulkWrite],
        *,
        deadline_s: float,
    ) -> None:
        """Fill reserved blocks; returns when the node has all bytes. Nothing is visible before the
        commit, whose checksums the node compares with what arrived. Raises
        DeadlineExceededError, UnavailableError, or what the node answered."""

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Loan:
    """Leased blocks lent out for sending. Their memory is not reused before `give_back`, even if
    the lease ends meanwhile."""

    views: Sequence[memoryview]
    give_back: Callable[[], None]
    """Once, from any thread."""


class BulkStore(Protocol):
    """Where a server of bulk bytes gets them from, and where it puts them. Any thread may call; no
    call waits for the node's event loop, only for the copy of one piece."""

    def lend(self, session_id: int, lease_id: int, indices: Sequence[int]) -> Loan:
        """Blocks of a live lease. Raises LeaseExpiredError, InvalidArgumentError."""

    def land(
        self, session_id: int, reservation_id: int, index: int, start_byte: int, data: memoryview
    ) -> None:
        """Copy a piece into a block of a live reservation. Pieces of one block come in order; one
        that starts at 0 begins the block anew. Raises ReservationExpiredError,
        InvalidArgumentError; then nothing was written."""


class Server(Protocol):
    """Serves a table of handlers by method name."""

    async def start(self) -> None:
        """Bind and serve. Raises ConfigurationError if the address cannot be used."""

    async def stop(self) -> None:
        """Answer what is in flight, for a bounded time, then close. Idempotent."""

    @property
    def endpoint(self) -> str:
        """Where it listens, with the real port."""

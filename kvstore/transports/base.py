"""How a client reaches a node. A transport carries protobuf messages; it knows nothing of what they
mean.

Bulk bytes do not pass here on one host: they are written and read in the shared arena.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from google.protobuf.message import Message

R = TypeVar("R", bound=Message)

Handler = Callable[[Message], Awaitable[Message]]
"""What serves one method. Raises errors of `kvstore.core.errors`; a transport maps them to status
codes."""


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


class Server(Protocol):
    """Serves a table of handlers by method name."""

    async def start(self) -> None:
        """Bind and serve. Raises ConfigurationError if the address cannot be used."""

    async def stop(self) -> None:
        """Answer what is in flight, for a bounded time, then close. Idempotent."""

    @property
    def endpoint(self) -> str:
        """Where it listens, with the real port."""

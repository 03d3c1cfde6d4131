"""One subscriber for each member that publishes block events."""

from __future__ import annotations

import zmq
import zmq.asyncio

from cluster.conductor.feed import IndexFeed
from cluster.conductor.types import Member
from kvstore.core.errors import ConfigurationError, InvalidArgumentError
from kvstore.core.ids import MemberId
from kvstore.events.sockets import Secure
from kvstore.events.subscriber import EventSubscriber

_SOCKETS_MAX = 16_384
"""Two a member at most, and that only while it replays."""


class Views:
    """Opens and closes subscribers as members come and go. Owned by one event loop."""

    def __init__(self, secure: Secure | None = None) -> None:
        """`secure` is applied to the sockets that follow members."""
        self._secure = secure
        self._context = zmq.asyncio.Context()
        self._context.set(zmq.MAX_SOCKETS, _SOCKETS_MAX)
        self._subscribers: dict[MemberId, EventSubscriber] = {}

    async def open(self, member: Member, epoch: int, feed: IndexFeed) -> None:
        """Follow a member from now on, in place of what it was before.

        Raises InvalidArgumentError if its endpoints are none.
        """
        await self.close(member.member_id)
        if not member.event_endpoint or not feed.valid:  # replaced or gone during the await
            return
        subscriber = EventSubscriber(
            member.member_id,
            member.event_endpoint,
            member.replay_endpoint,
            feed,
            epoch=epoch,
            context=self._context,
            secure=self._secure,
        )
        try:
            await subscriber.start()
        except ConfigurationError as error:
            raise InvalidArgumentError(str(error)) from error
        self._subscribers[member.member_id] = subscriber

    async def close(self, member_id: MemberId) -> None:
        """Idempotent."""
        subscriber = self._subscribers.pop(member_id, None)
        if subscriber is not None:
            await subscriber.stop()

    async def close_all(self) -> None:
        for member_id in list(self._subscribers):
            await self.close(member_id)
        self._context.term()

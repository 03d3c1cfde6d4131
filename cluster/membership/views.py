"""One subscriber for each member that publishes block events."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import zmq
import zmq.asyncio

from cluster.conductor.feed import IndexFeed
from cluster.conductor.types import Member
from kvstore.core.errors import ConfigurationError, InvalidArgumentError
from kvstore.core.ids import LayoutFingerprint, MemberId
from kvstore.events.sockets import Secure
from kvstore.events.subscriber import EventSubscriber
from kvstore.tiers.base import TierKind

_SOCKETS_MAX = 16_384
"""Two a member at most, and that only while it replays."""


@dataclass(frozen=True, slots=True)
class Position:
    """Up to where a member's events are in the index."""

    epoch: int
    sequence: int
    layouts: Mapping[TierKind, LayoutFingerprint]
    """Of all its blocks, by tier."""


@dataclass(frozen=True, slots=True)
class _View:
    subscriber: EventSubscriber
    feed: IndexFeed

    def position(self) -> Position | None:
        """None where its blocks are not known, or have several layouts."""
        statistics, layouts = self.subscriber.statistics(), self.feed.layouts
        if statistics.sequence is None or layouts is None or not self.feed.valid:
            return None
        return Position(statistics.epoch, statistics.sequence, layouts)


class Positions:
    """Of all members at one moment."""

    def __init__(self, views: Mapping[MemberId, _View]) -> None:
        self._begun = {name: (view.feed, view.feed.resets) for name, view in views.items()}
        found = {name: view.position() for name, view in views.items()}
        self.of: Mapping[MemberId, Position] = {n: p for n, p in found.items() if p is not None}

    def broken(self) -> set[MemberId]:
        """Those who were not simply followed since then: gone, or begun anew."""
        return {
            name
            for name, (feed, resets) in self._begun.items()
            if not feed.valid or feed.resets != resets or feed.layouts is None
        }


class Views:
    """Opens and closes subscribers as members come and go. Owned by one event loop."""

    def __init__(self, secure: Secure | None = None) -> None:
        """`secure` is applied to the sockets that follow members."""
        self._secure = secure
        self._context = zmq.asyncio.Context()
        self._context.set(zmq.MAX_SOCKETS, _SOCKETS_MAX)
        self._turns = asyncio.Lock()
        self._views: dict[MemberId, _View] = {}
        self._skipped_before = 0

    @property
    def skipped_messages(self) -> int:
        """Malformed ones, and those of publishers that are not who registered."""
        open_now = (view.subscriber.statistics().malformed for view in self._views.values())
        return self._skipped_before + sum(open_now)

    async def open(
        self, member: Member, epoch: int, feed: IndexFeed, position: Position | None = None
    ) -> None:
        """Follow a member from now on, in place of what it was before; `position`: what is in the
        index already.

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
            epoch=epoch if position is None else position.epoch,
            sequence=None if position is None else position.sequence,
            context=self._context,
            secure=self._secure,
            turns=self._turns,
        )
        try:
            await subscriber.start()
        except ConfigurationError as error:
            raise InvalidArgumentError(str(error)) from error
        self._views[member.member_id] = _View(subscriber, feed)

    def positions(self) -> Positions:
        return Positions(self._views)

    async def close(self, member_id: MemberId) -> None:
        """Idempotent."""
        view = self._views.pop(member_id, None)
        if view is not None:
            self._skipped_before += view.subscriber.statistics().malformed
            await view.subscriber.stop()

    async def close_all(self) -> None:
        for member_id in list(self._views):
            await self.close(member_id)
        self._context.term()

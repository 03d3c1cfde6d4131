"""Follows the node at one endpoint for as long as its heart beats, and again when it is back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

import zmq.asyncio

from kvstore.core.errors import ConfigurationError, KVStoreError
from kvstore.core.ids import BlockKeys, MemberId
from kvstore.directory.base import NodeRecord
from kvstore.directory.state import DirectoryState
from kvstore.events.sockets import Secure
from kvstore.events.subscriber import EventSubscriber
from kvstore.tiers.base import TierKind

_LOG = logging.getLogger(__name__)

Describe = Callable[[str, float], Awaitable[NodeRecord]]
"""(endpoint, deadline_s) → who is there. Raises errors of `kvstore.core.errors`."""

_DESCRIBE_DEADLINE_S = 1.0
_PAUSE_S_MIN = 0.05
_PAUSE_S_MAX = 1.0
_LOOKS_PER_SILENCE = 8


class Roster(Protocol):
    """Who is followed already. Called by the peers of one view."""

    def claim(self, record: NodeRecord) -> bool:
        """Whether this one is to be followed; nobody else follows it then, until `dismiss`."""

    def show(self, record: NodeRecord) -> None:
        """It speaks. Idempotent."""

    def lose(self, record: NodeRecord) -> None:
        """It fell silent, or starts anew: say so."""

    def dismiss(self, record: NodeRecord) -> None:
        """It is not followed any more."""


class PeerBlocks:
    """An `EventTarget`: one node's part of the directory."""

    def __init__(
        self, publisher: MemberId, state: DirectoryState, heard: Callable[[], None]
    ) -> None:
        """`heard` is called when a snapshot arrives: the first sign that events come through."""
        self._publisher = publisher
        self._state = state
        self._heard = heard

    def stored(self, tier: TierKind, keys: BlockKeys) -> None:
        self._state.stored(self._publisher, tier, keys)

    def removed(self, tier: TierKind, keys: BlockKeys) -> None:
        self._state.removed(self._publisher, tier, keys)

    def cleared(self, tier: TierKind) -> None:
        self._state.cleared(self._publisher, tier)

    def reset(self) -> None:
        self._state.forget(self._publisher)
        self._heard()


class Peer:
    """`run` is a task that goes on until it is cancelled; it then leaves nothing behind.

    Ask who is there → follow its events → it falls silent, or starts anew → forget it → ask again.
    """

    def __init__(
        self,
        endpoint: str,
        describe: Describe,
        roster: Roster,
        state: DirectoryState,
        context: zmq.asyncio.Context,
        asking: asyncio.Semaphore,
        silence_s: float,
        secure: Secure | None = None,
    ) -> None:
        """`asking` bounds how many peers of a view ask at a time."""
        self._endpoint = endpoint
        self._describe = describe
        self._roster = roster
        self._state = state
        self._context = context
        self._asking = asking
        self._silence_s = silence_s
        self._secure = secure

    async def run(self) -> None:
        while True:
            try:
                await self._follow_once(await self._ask())
            except ConfigurationError as error:
                _LOG.warning("peer %s: %s", self._endpoint, error)
            except Exception:
                # A defect must not end the view of this peer for good.
                _LOG.exception("peer %s: starting again", self._endpoint)
            await asyncio.sleep(_PAUSE_S_MAX)

    async def _ask(self) -> NodeRecord:
        pause_s = _PAUSE_S_MIN
        while True:
            try:
                async with self._asking:
                    return await self._describe(self._endpoint, _DESCRIBE_DEADLINE_S)
            except KVStoreError as error:
                _LOG.debug("peer %s does not say who it is: %s", self._endpoint, error)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _PAUSE_S_MAX)

    async def _follow_once(self, record: NodeRecord) -> None:
        if not self._roster.claim(record):
            return
        publisher = MemberId(record.node_id)
        subscriber = EventSubscriber(
            publisher,
            record.event_endpoint,
            record.replay_endpoint,
            PeerBlocks(publisher, self._state, lambda: self._roster.show(record)),
            epoch=record.boot_id,
            context=self._context,
            secure=self._secure,
        )
        try:
            await subscriber.start()
            await self._while_alive(subscriber, record)
            self._roster.lose(record)
        finally:
            await subscriber.stop()
            self._state.forget(publisher)
            self._roster.dismiss(record)

    async def _while_alive(self, subscriber: EventSubscriber, record: NodeRecord) -> None:
        """Returns when nothing came for `silence_s`, or the node started anew.

        It looks a number of times and reads no clock: a loop that stood still counts as one look,
        not as a silence of the peer.
        """
        heard = silent_looks = 0
        while silent_looks < _LOOKS_PER_SILENCE:
            await asyncio.sleep(self._silence_s / _LOOKS_PER_SILENCE)
            seen = subscriber.statistics()
            if seen.epoch != record.boot_id:
                return
            messages = seen.applied + seen.ignored
            silent_looks = 0 if messages != heard else silent_looks + 1
            heard = messages

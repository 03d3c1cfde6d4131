"""Tells the directory in Redis what the own node holds, and tells it anew after a loss."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice

from kvstore.core.ids import BlockKeys, MemberId
from kvstore.directory.redis_changes import Change, Verb, of_events, of_keys, split
from kvstore.directory.redis_directory import RedisDirectory
from kvstore.directory.redis_members import RedisMembers, Registration
from kvstore.events import codec
from kvstore.events.base import Inventory
from kvstore.events.outbox import Outbox
from kvstore.tiers.base import TierKind
from kvstore.wire.v1.event_pb2 import BlockEvent

_MAX_WAITING_BYTES = 32 << 20
"""About a million blocks. At the bound they are given up, and the whole inventory is sent."""
_CHANGES_AT_A_TIME = 16


class RedisReporter:
    """An `EventSink` and its sender.

    The sink verbs may be called from one other thread, before and after `begin` too; they take a
    short lock. All else belongs to one event loop. What waits is kept while Redis is away.
    """

    def __init__(self, directory: RedisDirectory) -> None:
        self._directory = directory
        self._outbox = Outbox(_MAX_WAITING_BYTES)
        self._pending: deque[Change] = deque()
        self._wake = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._registration: Registration | None = None
        self.rebuilds = 0
        self.overflows = 0

    def begin(self, members: RedisMembers, publisher: MemberId, inventory: Inventory) -> None:
        self._members = members
        self._publisher = publisher
        self._inventory = inventory
        self._loop = asyncio.get_running_loop()
        self._wake.set()

    def end(self) -> None:
        """Events recorded from now on go nowhere."""
        self._loop = None

    def stored(self, tier: TierKind, keys: BlockKeys) -> None:
        self._record(codec.stored_events(tier, keys))

    def removed(self, tier: TierKind, keys: BlockKeys) -> None:
        self._record(codec.removed_events(tier, keys))

    def cleared(self, tier: TierKind) -> None:
        self._record([codec.cleared_event(tier)])

    @property
    def registration(self) -> Registration | None:
        """None while there is nothing that Redis could be told."""
        return self._registration

    def lose(self, registration: Registration | None) -> None:
        """What was told under `registration` is lost: register and tell all anew."""
        if self._registration is registration:
            self._registration = None
            self._wake.set()

    async def until_due(self) -> None:
        """Until there is something to send."""
        await self._wake.wait()

    async def send(self) -> None:
        """Send all that waits, in order. Raises UnavailableError and DeadlineExceededError; it is
        then due again, and nothing is lost."""
        self._wake.clear()
        try:
            registration = self._registration or await self._begin_anew()
            if registration is not None:
                await self._send_waiting(registration)
        except BaseException:
            self._wake.set()
            raise

    async def _begin_anew(self) -> Registration | None:
        registration = await self._members.register()
        if registration is None:
            return None
        self._pending.clear()
        self._outbox.take()  # the inventory, read after this, shows all of it
        inventory = list(self._inventory())
        self._registration = registration
        self.rebuilds += 1
        try:
            await self._apply(registration, _all_stored(inventory))
        except BaseException:
            self.lose(registration)
            raise
        return registration

    async def _send_waiting(self, registration: Registration) -> None:
        while self._registration is registration and self._fill(registration):
            part = list(islice(self._pending, _CHANGES_AT_A_TIME))
            await self._apply(registration, part)
            for _ in part:
                self._pending.popleft()

    def _fill(self, registration: Registration) -> bool:
        """Whether there is something to send."""
        if not self._pending:
            taken = self._outbox.take()
            self._pending.extend(split(of_events(taken.events)))
            if taken.overflowed:
                self.overflows += 1
                self.lose(registration)
                return False
        return bool(self._pending)

    async def _apply(self, registration: Registration, changes: Iterable[Change]) -> None:
        if not await self._directory.apply(self._publisher, changes, registration.fence):
            self.lose(registration)

    def _record(self, events: Iterable[BlockEvent]) -> None:
        if self._outbox.add(events) and (loop := self._loop) is not None:
            loop.call_soon_threadsafe(self._wake.set)


def _all_stored(inventory: Iterable[tuple[TierKind, BlockKeys]]) -> Iterator[Change]:
    return (of_keys(Verb.STORED, tier, keys) for tier, keys in inventory)

"""Giving leases back without making their readers wait."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from kvstore.core.errors import KVStoreError
from kvstore.transports.base import Channel
from kvstore.wire.v1 import node_pb2

RELEASE_S = 0.25
MAX_UNSENT = 4_096
GATHER_S = 0.005
"""Releases wait that long for others, to go in one call: a reader that takes block after block
then pays one round trip for each, not two."""


class Releases:
    """Sends releases in the background, all that wait in one call. On one event loop.

    Failure: one that is lost costs nothing but time, for a lease ends by itself. Bound: beyond
    MAX_UNSENT releases that are not answered yet the rest is left to that.
    """

    def __init__(self) -> None:
        self._unsent: dict[tuple[Channel, int], list[int]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._senders = set[asyncio.Task[None]]()
        self._num_open = 0
        self._closed = False

    def add(self, channel: Channel, session_id: int, lease_id: int) -> None:
        if self._closed or self._num_open >= MAX_UNSENT:
            return
        self._num_open += 1
        self._unsent.setdefault((channel, session_id), []).append(lease_id)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(GATHER_S, self._begin)

    @property
    def waiting(self) -> bool:
        """Whether the node may hold back memory that was given back here."""
        return bool(self._num_open)

    async def sent(self) -> None:
        """Let what waits go now, so that the node has the memory back for the caller's next
        call."""
        if self._unsent:
            self._begin()
            await asyncio.sleep(0)

    async def arrived(self) -> None:
        """Until the node has all that was added before; at most RELEASE_S."""
        await self.sent()
        if self._senders:
            await asyncio.wait(self._senders)

    async def close(self) -> None:
        """Whoever closes the session frees its leases. Idempotent."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for sender in self._senders:
            sender.cancel()
        if self._senders:
            await asyncio.wait(self._senders)

    def _begin(self) -> None:
        """What is added while these are on their way waits for others again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        unsent, self._unsent = self._unsent, {}
        for (channel, session_id), lease_ids in unsent.items():
            sender = asyncio.create_task(self._send(channel, session_id, lease_ids))
            self._senders.add(sender)
            sender.add_done_callback(self._senders.discard)

    async def _send(self, channel: Channel, session_id: int, lease_ids: list[int]) -> None:
        request = node_pb2.ReleaseRequest(session_id=session_id, lease_ids=lease_ids)
        try:
            with suppress(KVStoreError):
                await channel.call(
                    "Release", request, node_pb2.ReleaseResponse, deadline_s=RELEASE_S
                )
        finally:
            self._num_open -= len(lease_ids)

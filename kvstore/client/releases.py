"""Giving leases back without making their readers wait."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from kvstore.core.errors import KVStoreError
from kvstore.transports.base import Channel
from kvstore.wire.v1 import node_pb2

RELEASE_S = 0.25
MAX_UNSENT = 4_096
GATHER_S = 0.001
"""Releases wait that long for others, to go in one call: a reader that takes block after block
then pays one round trip for each, not two."""


class Releases:
    """Sends releases in the background, all that wait in one call. On one event loop.

    Failure: one that is lost costs nothing but time, for a lease ends by itself. Bound: beyond
    MAX_UNSENT waiting leases the rest is left to that.
    """

    def __init__(self) -> None:
        self._unsent: dict[tuple[Channel, int], list[int]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._sender: asyncio.Task[None] | None = None
        self._num_unsent = 0
        self._closed = False

    def add(self, channel: Channel, session_id: int, lease_id: int) -> None:
        if self._closed or self._num_unsent >= MAX_UNSENT:
            return
        self._num_unsent += 1
        self._unsent.setdefault((channel, session_id), []).append(lease_id)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(GATHER_S, self._begin)

    async def sent(self) -> None:
        """Let what waits go now, so that the node has the memory back for the caller's next
        call."""
        if self._unsent:
            self._begin()
            await asyncio.sleep(0)

    async def arrived(self) -> None:
        """Until the node has all that was added before; at most RELEASE_S a session."""
        await self.sent()
        if self._sender is not None:
            await asyncio.wait([self._sender])

    async def close(self) -> None:
        """Whoever closes the session frees its leases. Idempotent."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._sender is not None:
            self._sender.cancel()
            await asyncio.wait([self._sender])

    def _begin(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._send())

    async def _send(self) -> None:
        while self._unsent:
            unsent, self._unsent = self._unsent, {}
            self._num_unsent = 0
            for (channel, session_id), lease_ids in unsent.items():
                request = node_pb2.ReleaseRequest(session_id=session_id, lease_ids=lease_ids)
                with suppress(KVStoreError):
                    await channel.call(
                        "Release", request, node_pb2.ReleaseResponse, deadline_s=RELEASE_S
                    )

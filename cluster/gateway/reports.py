"""Tells the conductor how requests went, without making anyone wait for it."""

from __future__ import annotations

import asyncio
import logging

from cluster.membership.client import ConductorClient
from cluster.wire.v1 import conductor_pb2 as conductor
from kvstore.core.errors import KVStoreError

_LOG = logging.getLogger(__name__)

_CLOSE_WAIT_S = 1.0


class CompletionReporter:
    """Sends reports in the background. Belongs to one event loop.

    Bound: `pending_max` reports on their way; further ones are dropped. A report that is lost
    costs the conductor one sample of its cost model.
    """

    def __init__(self, client: ConductorClient, *, pending_max: int = 256) -> None:
        self._client = client
        self._pending_max = pending_max
        self._pending: set[asyncio.Task[None]] = set()
        self.dropped = 0

    def report(self, completion: conductor.CompleteRequest) -> None:
        if len(self._pending) >= self._pending_max:
            self.dropped += 1
            return
        task = asyncio.create_task(self._send(completion))
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)

    async def close(self) -> None:
        """Waits briefly for reports on their way, then gives up on them."""
        if not self._pending:
            return
        _, late = await asyncio.wait(self._pending, timeout=_CLOSE_WAIT_S)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    async def _send(self, completion: conductor.CompleteRequest) -> None:
        try:
            await self._client.complete(completion)
        except KVStoreError as error:
            _LOG.info("the conductor did not take a report: %s", error)

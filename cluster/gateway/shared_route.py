"""Where the samples of one prompt go: all to the same workers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from cluster.wire.v1 import conductor_pb2 as conductor


class SharedRoute:
    """One placement for all samples of a prompt: the blocks are where the first one computes them.
    Belongs to one event loop."""

    def __init__(self) -> None:
        self._asking = asyncio.Lock()
        self._route: conductor.RouteResponse | None = None

    async def get(
        self, ask: Callable[[], Awaitable[conductor.RouteResponse]]
    ) -> conductor.RouteResponse:
        """Whoever comes first asks. If that fails, so does he, and the next one asks again."""
        async with self._asking:
            if self._route is None:
                self._route = await ask()
            return self._route

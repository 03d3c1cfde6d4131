"""Where requests wait for their placement."""

from __future__ import annotations

import asyncio
import contextlib

from cluster.conductor.conductor import Conductor
from cluster.conductor.types import Placement, Request
from kvstore.core.errors import KVStoreError, UnavailableError
from kvstore.core.ids import RequestId


class Desk:
    """`place` waits, on one event loop; its owner calls `changed` when something has, and runs
    `run` beside.

    Bounded by the conductor's waiting room, in number and in time. A caller that is cancelled takes
    its request back, whether it was waiting still or had just been placed.
    """

    def __init__(self, conductor: Conductor, every_s: float) -> None:
        self._conductor = conductor
        self._every_s = every_s
        self._waiting: dict[RequestId, asyncio.Future[Placement]] = {}
        self._somebody = asyncio.Event()

    async def place(self, request: Request) -> Placement:
        """Raises what `Conductor.submit` raises; UnavailableError if the same request is asked for
        anew meanwhile."""
        answer = self._conductor.submit(request)
        if isinstance(answer, Placement):
            return answer
        return await self._wait(request.request_id)

    def changed(self) -> None:
        """Place those that can be placed now. Costs nothing while nobody waits."""
        if not self._waiting:
            return
        for answer in self._conductor.dispatch():
            future = self._waiting.get(answer.request_id)
            if future is None or future.done():
                continue
            if isinstance(answer.outcome, KVStoreError):
                future.set_exception(answer.outcome)
            else:
                future.set_result(answer.outcome)

    async def run(self) -> None:
        """For ever: looks now and then, as time alone changes what can be placed."""
        while True:
            await self._somebody.wait()
            await asyncio.sleep(self._every_s)
            self.changed()
            if not self._waiting:
                self._somebody.clear()

    async def _wait(self, request_id: RequestId) -> Placement:
        earlier = self._waiting.get(request_id)
        if earlier is not None and not earlier.done():
            earlier.set_exception(UnavailableError(f"request {request_id!r} was asked for anew"))
        future: asyncio.Future[Placement] = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = future
        self._somebody.set()
        try:
            return await future
        except asyncio.CancelledError:
            if self._waiting.get(request_id) is future:
                self._conductor.cancel(request_id)
            raise
        finally:
            if self._waiting.get(request_id) is future:
                del self._waiting[request_id]
            with contextlib.suppress(asyncio.CancelledError):  # so that asyncio calls it retrieved
                future.exception() if future.done() else None

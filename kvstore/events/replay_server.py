"""Answers subscribers that missed batches."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator

import zmq
import zmq.asyncio
from google.protobuf.message import DecodeError

from kvstore.events.sockets import Secure, bind
from kvstore.wire.v1.event_pb2 import ReplayRequest, ReplayResponse

_LOG = logging.getLogger(__name__)

Answer = Callable[[ReplayRequest], Iterator[ReplayResponse]]

_STALL_S = 1.0
"""A subscriber that takes no frame for this long is given up; it will ask again."""


class ReplayServer:
    """A ROUTER socket: one request frame in, a stream of response frames out, one at a time.

    Owned by the publisher's loop. Malformed requests are counted and skipped.
    """

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._socket: zmq.asyncio.Socket | None = None
        self._task: asyncio.Task[None] | None = None
        self.malformed = 0

    def start(
        self, context: zmq.asyncio.Context, endpoint: str, secure: Secure | None = None
    ) -> str:
        """Bind and serve; returns the endpoint with its real port."""
        self._socket = context.socket(zmq.ROUTER)
        # Say so when a peer is gone or full, instead of dropping frames out of the middle.
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        bound = bind(self._socket, endpoint, secure)
        self._task = asyncio.create_task(self._serve(self._socket))
        return bound

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._socket is not None:
            self._socket.close(linger=0)
        self._task = self._socket = None

    async def _serve(self, socket: zmq.asyncio.Socket) -> None:
        while True:
            frames = await socket.recv_multipart()
            request = self._parse(frames)
            if request is None:
                self.malformed += 1
                continue
            try:
                await self._reply(socket, frames[0], request)
            except (zmq.ZMQError, TimeoutError):
                _LOG.debug("a subscriber went away or stalled during its replay")
            except Exception:
                # The owner's inventory failed. The next subscriber deserves another try.
                _LOG.exception("no replay: the inventory could not be read")

    @staticmethod
    def _parse(frames: list[bytes]) -> ReplayRequest | None:
        if len(frames) != 2:
            return None
        try:
            return ReplayRequest.FromString(frames[1])
        except DecodeError:
            return None

    async def _reply(self, socket: zmq.asyncio.Socket, peer: bytes, request: ReplayRequest) -> None:
        for response in self._answer(request):
            frames = [peer, response.SerializeToString()]
            async with asyncio.timeout(_STALL_S):  # wait_for of Python 3.11 can lose a cancellation
                await socket.send_multipart(frames)
            await asyncio.sleep(0)  # a send that need not wait does not let others run

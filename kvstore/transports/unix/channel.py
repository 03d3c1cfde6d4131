"""Calls a node on this host over its Unix socket."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from itertools import count
from typing import NamedTuple, TypeVar, cast

from google.protobuf.message import Message

from kvstore.core.errors import (
    ConfigurationError,
    DeadlineExceededError,
    ProtocolError,
    UnavailableError,
)
from kvstore.transports.methods import parse, serialize
from kvstore.transports.status import OK, from_status
from kvstore.transports.unix.frames import FrameReader, Request, Response, parse_response
from kvstore.transports.unix.server import SCHEME

_LOG = logging.getLogger(__name__)

R = TypeVar("R", bound=Message)


class UnixChannel:
    """Implements `Channel` on the running event loop. Connects with the first call.

    For one life of the node: once the connection is lost (`lost`), every call is UnavailableError.
    """

    def __init__(self, endpoint: str, *, max_in_flight: int = 256) -> None:
        """Raises ConfigurationError if the endpoint is none."""
        if not endpoint.startswith(SCHEME):
            raise ConfigurationError(f"cannot use endpoint {endpoint!r}: give {SCHEME}name")
        self._endpoint = endpoint
        self._slots = asyncio.Semaphore(max_in_flight)
        self._opening = asyncio.Lock()
        self._ids = count(1)
        self._link: _Link | None = None
        self._closed = False

    @property
    def lost(self) -> bool:
        return self._closed or (self._link is not None and self._link.lost)

    async def call(
        self, method: str, request: Message, response_type: type[R], *, deadline_s: float
    ) -> R:
        ends_at = asyncio.get_running_loop().time() + deadline_s
        number = next(self._ids)
        frame = Request(number, deadline_s, method, serialize(request)).encode()
        try:
            link = self._link
            if link is None or self._slots.locked() or not link.may_write.is_set():
                async with asyncio.timeout(deadline_s):
                    link = await self._wait_for_turn()
            else:
                await self._slots.acquire()  # there is one
            try:
                response = await link.exchange(number, frame, ends_at)
            finally:
                self._slots.release()
        except TimeoutError as error:
            raise DeadlineExceededError(
                f"{self._endpoint}: {method} took longer than {deadline_s:g} s"
            ) from error
        if response.status != OK:
            raise from_status(response.status, response.payload.decode(errors="replace"))
        return cast(R, parse(response_type, response.payload))

    async def close(self) -> None:
        self._closed = True
        if self._link is not None:
            self._link.close()

    async def _wait_for_turn(self) -> _Link:
        """A link that may be written to, and a slot taken."""
        await self._slots.acquire()
        try:
            link = self._link or await self._connect()
            await link.may_write.wait()
        except BaseException:
            self._slots.release()
            raise
        return link

    async def _connect(self) -> _Link:
        """Raises UnavailableError."""
        async with self._opening:
            if self._closed:
                raise UnavailableError(f"{self._endpoint}: the channel is closed; open a new one")
            if self._link is None:
                path = "\0" + self._endpoint.removeprefix(SCHEME)
                loop = asyncio.get_running_loop()
                try:
                    _, self._link = await loop.create_unix_connection(
                        lambda: _Link(self._endpoint), path
                    )
                except OSError as error:
                    raise UnavailableError(
                        f"{self._endpoint}: nobody answers there ({error.strerror}); check that "
                        "the node runs on this host"
                    ) from error
            return self._link


class _Waiting(NamedTuple):
    answer: asyncio.Future[Response]
    ends_at: float


class _Link(asyncio.Protocol):
    """One connection, and the calls that wait for their answers.

    One timer serves all deadlines, set to the earliest that it knew of: calls mostly end long
    before, and a timer for each would cost a tenth of a call.
    """

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._frames = FrameReader()
        self._waiting: dict[int, _Waiting] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self.may_write = asyncio.Event()
        self.may_write.set()

    @property
    def lost(self) -> bool:
        return self._transport is None

    async def exchange(self, number: int, frame: bytes, ends_at: float) -> Response:
        """Raises TimeoutError at `ends_at`, by the clock of the loop."""
        if self._transport is None:
            raise self._gone()
        waiting = _Waiting(self._loop.create_future(), ends_at)
        self._waiting[number] = waiting
        if self._timer is None or ends_at < self._timer.when():
            self._set_timer(ends_at)
        self._transport.write(frame)
        try:
            return await waiting.answer
        finally:
            del self._waiting[number]

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._frames.feed(data):
                response = parse_response(frame)
                waiting = self._waiting.get(response.id)
                if waiting is not None and not waiting.answer.done():
                    waiting.answer.set_result(response)
        except ProtocolError as error:
            _LOG.warning("%s: %s", self._endpoint, error)
            self.close()

    def pause_writing(self) -> None:
        self.may_write.clear()

    def resume_writing(self) -> None:
        self.may_write.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.may_write.set()
        if self._timer is not None:
            self._timer.cancel()
        self._end(self._waiting.values(), self._gone)

    def _set_timer(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(at, self._time_out)

    def _time_out(self) -> None:
        now = self._loop.time()
        self._timer = None
        self._end((w for w in self._waiting.values() if w.ends_at <= now), TimeoutError)
        left = [w.ends_at for w in self._waiting.values() if w.ends_at > now]
        if left:
            self._set_timer(min(left))

    @staticmethod
    def _end(calls: Iterable[_Waiting], error: Callable[[], Exception]) -> None:
        for waiting in calls:
            if not waiting.answer.done():
                waiting.answer.set_exception(error())

    def _gone(self) -> UnavailableError:
        return UnavailableError(f"{self._endpoint}: the node went away; connect to it again")

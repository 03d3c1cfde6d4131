"""Calls a node on this host over its Unix socket."""

from __future__ import annotations

import asyncio
import logging
from itertools import count
from typing import TypeVar, cast

from google.protobuf.message import Message

from kvstore.core.errors import (
    ConfigurationError,
    DeadlineExceededError,
    ProtocolError,
    UnavailableError,
)
from kvstore.transports.methods import parse
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
        try:
            async with asyncio.timeout(deadline_s), self._slots:
                link = self._link or await self._connect()
                number = next(self._ids)
                frame = Request(number, deadline_s, method, request.SerializeToString()).encode()
                response = await link.exchange(number, frame)
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


class _Link(asyncio.Protocol):
    """One connection, and the calls that wait for their answers."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._frames = FrameReader()
        self._pending: dict[int, asyncio.Future[Response]] = {}
        self._transport: asyncio.Transport | None = None
        self._may_write = asyncio.Event()
        self._may_write.set()

    @property
    def lost(self) -> bool:
        return self._transport is None

    async def exchange(self, number: int, frame: bytes) -> Response:
        if not self._may_write.is_set():
            await self._may_write.wait()
        if self._transport is None:
            raise self._gone()
        future: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self._pending[number] = future
        self._transport.write(frame)
        try:
            return await future
        finally:
            del self._pending[number]

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._frames.feed(data):
                response = parse_response(frame)
                future = self._pending.get(response.id)
                if future is not None and not future.done():
                    future.set_result(response)
        except ProtocolError as error:
            _LOG.warning("%s: %s", self._endpoint, error)
            self.close()

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._may_write.set()
        for future in self._pending.values():
            if not future.done():
                future.set_exception(self._gone())

    def _gone(self) -> UnavailableError:
        return UnavailableError(f"{self._endpoint}: the node went away; connect to it again")

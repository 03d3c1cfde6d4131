"""Serves a table of unary handlers over a Unix socket, to processes of the same user and host."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import struct
from collections.abc import Mapping
from types import MappingProxyType
from typing import cast

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message

from kvstore.core.errors import ProtocolError, ResourceExhaustedError
from kvstore.transports.base import Handler, PromptHandler
from kvstore.transports.methods import bind, parse, serialize
from kvstore.transports.status import OK, to_status
from kvstore.transports.unix.frames import FrameReader, Request, Response, parse_request

_LOG = logging.getLogger(__name__)

SCHEME = "unix:@"
_NONE: Mapping[str, PromptHandler] = MappingProxyType({})
_CREDENTIALS = struct.Struct("3i")


class UnixServer:
    """A server on the running event loop; implements `Server`.

    A round trip takes a fraction of one over ZeroMQ, for no other thread is in between. The socket
    has a random name in the abstract namespace: no file, nothing left behind by a killed process.
    Who connects must be of the same user; others are closed at once.

    Bounds: frame size; `max_in_flight` calls over all connections (more are answered
    ResourceExhaustedError); each call's own deadline, at which its handler is cancelled; a peer
    that does not read its answers is not read from. Malformed bytes end their connection.
    """

    def __init__(
        self,
        service: ServiceDescriptor,
        handlers: Mapping[str, Handler],
        prompt: Mapping[str, PromptHandler] = _NONE,
        *,
        max_in_flight: int = 1_024,
        drain_s: float = 2.0,
    ) -> None:
        """`prompt`: some of the same methods, answered as they are read. A task for each call takes
        as long as the work of most."""
        self._service = service.full_name
        self._methods = bind(service, handlers)
        self._prompt = prompt
        self._name = f"kvstore-{secrets.token_hex(16)}"
        self._max_in_flight = max_in_flight
        self._drain_s = drain_s
        self._server: asyncio.Server | None = None
        self._calls: set[asyncio.Task[None]] = set()
        self.connections: set[_Connection] = set()

    async def start(self) -> None:
        assert self._server is None, "started once"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"\0{self._name}")
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: _Connection(self), sock=listener)

    async def stop(self) -> None:
        if self._server is None:
            return
        self._server.close()
        if self._calls:
            await asyncio.wait(self._calls, timeout=self._drain_s)
        for call in self._calls:
            call.cancel()
        if self._calls:
            await asyncio.wait(self._calls)
        for connection in list(self.connections):
            connection.close()

    @property
    def endpoint(self) -> str:
        return f"{SCHEME}{self._name}"

    def begin(self, request: Request, connection: _Connection) -> None:
        try:
            call = self._answer_or_call(request, connection)
        except Exception as error:  # the boundary of a call: every error becomes its answer
            connection.answer(_failure(request.id, error))
            return
        if call is not None:
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)

    def _answer_or_call(
        self, request: Request, connection: _Connection
    ) -> asyncio.Task[None] | None:
        method = self._methods.get(request.method)
        if method is None:
            raise ProtocolError(f"{self._service} has no method {request.method[:64]!r} here")
        message = parse(method.request_type, request.payload)
        prompt = self._prompt.get(request.method)
        if prompt is not None and (answer := prompt(message)) is not None:
            connection.answer(Response(request.id, OK, serialize(answer)))
            return None
        if len(self._calls) >= self._max_in_flight:
            raise ResourceExhaustedError(f"{self._max_in_flight} calls are in flight; retry")
        work = self._serve(request, method.handler, message, connection)
        return asyncio.get_running_loop().create_task(work)

    async def _serve(
        self, request: Request, handler: Handler, message: Message, connection: _Connection
    ) -> None:
        try:
            async with asyncio.timeout(request.deadline_s):
                response = Response(request.id, OK, serialize(await handler(message)))
        except Exception as error:  # the boundary of a call: every error becomes its answer
            response = _failure(request.id, error)
        connection.answer(response)


class _Connection(asyncio.Protocol):
    def __init__(self, server: UnixServer) -> None:
        self._server = server
        self._frames = FrameReader()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if _peer_uid(self._transport.get_extra_info("socket")) != os.getuid():
            _LOG.warning("refused a connection by another user")
            self._transport.abort()
            return
        self._server.connections.add(self)

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._frames.feed(data):
                self._server.begin(parse_request(frame), self)
        except ProtocolError as error:
            _LOG.debug("closed a connection: %s", error)
            self._abort()

    def pause_writing(self) -> None:
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._server.connections.discard(self)

    def answer(self, response: Response) -> None:
        """Dropped if the peer is gone."""
        if self._transport is not None:
            self._transport.write(response.encode())

    def close(self) -> None:
        """After the answers that are on their way."""
        if self._transport is not None:
            self._transport.close()

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


def _peer_uid(peer: socket.socket) -> int:
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    uid: int = _CREDENTIALS.unpack(credentials)[1]
    return uid


def _failure(request_id: int, error: Exception) -> Response:
    status, message = to_status(error)
    return Response(request_id, status, message.encode())

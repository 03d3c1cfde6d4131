"""Serves a table of unary handlers over a ZeroMQ ROUTER socket."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import zmq
import zmq.asyncio
from google.protobuf.descriptor import ServiceDescriptor

from kvstore.core.errors import ConfigurationError, ProtocolError, ResourceExhaustedError
from kvstore.events.sockets import keep_from_others
from kvstore.transports.base import Handler
from kvstore.transports.methods import bind, parse
from kvstore.transports.security.caller import set_caller
from kvstore.transports.security.curve import Admit
from kvstore.transports.security.keys import NO_SERVER_KEYS, ServerKeys
from kvstore.transports.status import OK, to_status
from kvstore.transports.zmq.frames import MAX_MESSAGE_BYTES, Request, Response, parse_request

_LOG = logging.getLogger(__name__)

HIGH_WATER_MARK = 4_096
"""Messages queued for one peer; answers to a peer that does not read are dropped beyond it."""
LAST_ANSWERS_MS = 200
"""Longest time that stopping waits for peers to take the answers sent last."""


class _Arrived(NamedTuple):
    peer: bytes
    frames: list[bytes]
    signed: zmq.Frame | None = None
    """One of the frames, by which CURVE tells the caller."""


class ZmqServer:
    """ROUTER server on the running event loop; implements `Server`.

    Bounds: message size, `max_in_flight` calls (more are answered ResourceExhaustedError at once),
    and each call's own deadline, at which its handler is cancelled. A malformed request is answered
    with ProtocolError where it carries an id, and otherwise dropped and counted.
    Callers: with CURVE (tcp:// only), each call's caller is that of its public key; only the owner
    of the process can open the socket of an ipc:// endpoint.
    """

    def __init__(
        self,
        service: ServiceDescriptor,
        handlers: Mapping[str, Handler],
        endpoint: str,
        *,
        keys: ServerKeys = NO_SERVER_KEYS,
        max_in_flight: int = 1_024,
        drain_s: float = 2.0,
    ) -> None:
        self._service = service.full_name
        self._methods = bind(service, handlers)
        self._requested = endpoint
        self._endpoint = ""
        self._curve = keys.curve_for(endpoint)
        self._max_in_flight = max_in_flight
        self._drain_s = drain_s
        self._context: zmq.asyncio.Context | None = None
        self._router: zmq.asyncio.Socket | None = None
        self._receiver: asyncio.Task[None] | None = None
        self._calls: set[asyncio.Task[None]] = set()
        self.num_malformed = 0

    async def start(self) -> None:
        assert self._context is None, "started once"
        _refuse_taken_path(self._requested)
        self._context = zmq.asyncio.Context()
        router = self._context.socket(zmq.ROUTER)
        router.setsockopt(zmq.LINGER, LAST_ANSWERS_MS)
        router.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        router.setsockopt(zmq.SNDHWM, HIGH_WATER_MARK)
        router.setsockopt(zmq.RCVHWM, HIGH_WATER_MARK)
        if self._curve is not None:
            self._curve.secure(Admit.LISTED)(router)
        try:
            router.bind(self._requested)
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise ConfigurationError(
                f"cannot listen on {self._requested}: {error.strerror}; choose a free endpoint, "
                "ipc:///path or tcp://address:port"
            ) from error
        self._endpoint = router.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")
        keep_from_others(self._endpoint)
        self._router = router
        self._receiver = asyncio.create_task(self._receive(router))

    async def stop(self) -> None:
        if self._receiver is None:
            return
        receiver, self._receiver = self._receiver, None
        receiver.cancel()
        await asyncio.wait([receiver])
        if self._calls:
            await asyncio.wait(self._calls, timeout=self._drain_s)
        for call in self._calls:
            call.cancel()
        if self._calls:
            await asyncio.wait(self._calls)
        assert self._context is not None
        assert self._router is not None
        self._router.close(linger=LAST_ANSWERS_MS)
        await asyncio.to_thread(self._context.term)

    @property
    def endpoint(self) -> str:
        return self._endpoint

    async def _receive(self, router: zmq.asyncio.Socket) -> None:
        while True:
            peer, frames, signed = await self._next(router)
            try:
                request = parse_request(frames)
            except ProtocolError as error:
                self.num_malformed += 1
                _LOG.debug("malformed request: %s", error)
                if frames and len(frames[0]) == 8:
                    await self._answer(router, peer, _failure(frames[0], error))
                continue
            if len(self._calls) >= self._max_in_flight:
                busy = ResourceExhaustedError(f"{self._max_in_flight} calls are in flight; retry")
                await self._answer(router, peer, _failure(request.request_id, busy))
                continue
            call = asyncio.create_task(self._serve(router, peer, request, signed))
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)

    async def _next(self, router: zmq.asyncio.Socket) -> _Arrived:
        if self._curve is None:
            peer, *frames = await router.recv_multipart()
            return _Arrived(peer, frames)
        whole = await router.recv_multipart(copy=False)
        peer, *frames = [frame.bytes for frame in whole]
        return _Arrived(peer, frames, whole[-1])

    async def _serve(
        self,
        router: zmq.asyncio.Socket,
        peer: bytes,
        request: Request,
        signed: zmq.Frame | None,
    ) -> None:
        try:
            if self._curve is not None and signed is not None:
                set_caller(self._curve.caller(signed))
            payload = await self._call(request)
        except Exception as error:  # the boundary of a call: every error becomes its answer
            response = _failure(request.request_id, error)
        else:
            response = Response(request.request_id, OK, payload)
        await self._answer(router, peer, response)

    async def _call(self, request: Request) -> bytes:
        method = self._methods.get(request.method)
        if method is None:
            raise ProtocolError(
                f"{self._service} over ZeroMQ has no method {request.method[:64]!r}"
            )
        message = parse(method.request_type, request.payload)
        async with asyncio.timeout(request.deadline_s):
            response = await method.handler(message)
        return response.SerializeToString()

    async def _answer(self, router: zmq.asyncio.Socket, peer: bytes, response: Response) -> None:
        frames: Sequence[bytes] = [peer, *response.frames()]
        await router.send_multipart(frames)


def _failure(request_id: bytes, error: Exception) -> Response:
    status, message = to_status(error)
    return Response(request_id, status, message.encode())


def _refuse_taken_path(endpoint: str) -> None:
    """ZeroMQ takes an ipc path over from whoever listens there: refuse that."""
    scheme, _, path = endpoint.partition("://")
    if scheme != "ipc":
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError:
            return
    raise ConfigurationError(
        f"cannot listen on {endpoint}: another process does; choose a free one"
    )

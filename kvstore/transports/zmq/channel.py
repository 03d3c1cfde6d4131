"""Calls a node over a ZeroMQ DEALER socket."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from itertools import count
from typing import TypeVar, cast

import zmq
import zmq.asyncio
from google.protobuf.message import Message
from zmq.utils.monitor import recv_monitor_message

from kvstore.core.errors import (
    ConfigurationError,
    DeadlineExceededError,
    KVStoreError,
    ProtocolError,
    UnauthenticatedError,
    UnavailableError,
)
from kvstore.transports.methods import parse
from kvstore.transports.security.keys import NO_CLIENT_KEYS, ClientKeys
from kvstore.transports.status import OK, from_status
from kvstore.transports.zmq.frames import MAX_MESSAGE_BYTES, Request, Response, parse_response
from kvstore.transports.zmq.handshake import MONITORED, Change, read_event

_LOG = logging.getLogger(__name__)

R = TypeVar("R", bound=Message)

RECONNECT_MS = 50
RECONNECT_MS_MAX = 1_000


class ZmqChannel:
    """DEALER channel on the running event loop; implements `Channel`.

    It connects, and connects again after the peer was gone, by itself. While there is no connection
    a call waits for one, within its deadline; calls in flight when the connection breaks fail with
    UnavailableError at once. Where the node is there but the handshake fails, calls raise
    UnauthenticatedError: at once if the node refused, else at their deadline.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        keys: ClientKeys = NO_CLIENT_KEYS,
        max_in_flight: int = 256,
    ) -> None:
        """Raises ConfigurationError if the endpoint cannot be understood; connects later."""
        self._endpoint = endpoint
        self._slots = asyncio.Semaphore(max_in_flight)
        self._ids = count(1)
        self._pending: dict[bytes, asyncio.Future[Response]] = {}
        self._settled = asyncio.Event()
        """Connected, refused for good or closed: whoever waits for a connection may look."""
        self._connected = False
        self._rejection: UnauthenticatedError | None = None
        """Why the last handshake failed; None while nobody is there."""
        self._closed = False
        self._context = zmq.asyncio.Context()
        self._dealer = self._context.socket(zmq.DEALER)
        self._dealer.setsockopt(zmq.LINGER, 0)
        self._dealer.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        self._dealer.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        self._dealer.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MS_MAX)
        if (curve := keys.curve_for(endpoint)) is not None:
            curve.secure(self._dealer)
        monitor = self._dealer.get_monitor_socket(MONITORED)
        try:
            self._dealer.connect(endpoint)
        except zmq.ZMQError as error:
            self._destroy()
            raise ConfigurationError(
                f"cannot use endpoint {endpoint!r}: {error.strerror}; give ipc:///path or "
                "tcp://host:port"
            ) from error
        self._tasks = [
            asyncio.create_task(self._receive()),
            asyncio.create_task(self._watch(monitor)),
        ]

    async def call(
        self, method: str, request: Message, response_type: type[R], *, deadline_s: float
    ) -> R:
        try:
            async with asyncio.timeout(deadline_s) as timeout, self._slots:
                if not self._closed:
                    await self._settled.wait()
                deadline = timeout.when()
                assert deadline is not None
                remaining_s = deadline - asyncio.get_running_loop().time()
                response = await self._exchange(method, request.SerializeToString(), remaining_s)
        except KVStoreError:
            raise
        except TimeoutError as error:
            raise self._late(method, deadline_s) from error
        if response.status != OK:
            raise from_status(response.status, response.payload.decode(errors="replace"))
        return cast(R, parse(response_type, response.payload))

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        self._fail_pending("the channel was closed")
        self._settled.set()  # those who wait for a connection shall see that it is closed
        self._destroy()

    async def _exchange(self, method: str, payload: bytes, deadline_s: float) -> Response:
        if self._closed:
            raise UnavailableError(f"{self._endpoint}: the channel is closed; open a new one")
        if not self._connected and self._rejection is not None:
            raise self._rejection
        request = Request(next(self._ids).to_bytes(8, "little"), method, deadline_s, payload)
        future: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self._pending[request.request_id] = future
        try:
            await self._dealer.send_multipart(request.frames())
            return await future
        finally:
            del self._pending[request.request_id]

    async def _receive(self) -> None:
        while True:
            frames = await self._dealer.recv_multipart()
            try:
                response = parse_response(frames)
            except ProtocolError as error:
                _LOG.warning("%s: dropped a malformed response: %s", self._endpoint, error)
                continue
            future = self._pending.get(response.request_id)
            if future is not None and not future.done():
                future.set_result(response)

    async def _watch(self, monitor: zmq.asyncio.Socket) -> None:
        while True:
            connection = read_event(self._endpoint, await recv_monitor_message(monitor))
            match connection.change:
                case Change.CONNECTED:
                    self._connected, self._rejection = True, None
                    self._settled.set()
                case Change.DISCONNECTED:
                    await self._lose_connection()
                case _:
                    self._rejection = connection.error
            if connection.change is Change.GIVEN_UP:
                self._settled.set()
                asyncio.get_running_loop().call_later(RECONNECT_MS_MAX / 1000, self._try_again)

    async def _lose_connection(self) -> None:
        if not self._connected:
            return
        self._connected = False
        self._settled.clear()
        await self._take_last_answers()
        self._fail_pending("the node went away during the call; retry later")

    def _try_again(self) -> None:
        """ZeroMQ does not, once it was refused."""
        if self._closed:
            return
        self._settled.clear()
        self._dealer.disconnect(self._endpoint)
        self._dealer.connect(self._endpoint)

    async def _take_last_answers(self) -> None:
        """Those that came before the connection broke are in the socket, or taken from it and about
        to reach `_receive`, which needs a turn of the loop for each step."""
        turns_left = 3
        while turns_left:
            turns_left = 3 if await self._dealer.poll(0) else turns_left - 1
            await asyncio.sleep(0)

    def _fail_pending(self, why: str) -> None:
        for future in self._pending.values():
            if not future.done():
                future.set_exception(UnavailableError(f"{self._endpoint}: {why}"))

    def _late(self, method: str, deadline_s: float) -> KVStoreError:
        if self._connected:
            return DeadlineExceededError(
                f"{self._endpoint}: {method} took longer than {deadline_s:g} s"
            )
        return self._rejection or UnavailableError(
            f"{self._endpoint}: nobody answers there; check that the node runs and listens on it"
        )

    def _destroy(self) -> None:
        with suppress(zmq.ZMQError):
            self._dealer.disable_monitor()
        self._context.destroy(linger=0)

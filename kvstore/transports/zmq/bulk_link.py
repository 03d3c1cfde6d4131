"""The client's end of a bulk connection: a DEALER socket and the thread that owns it."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count

import zmq
from zmq.utils.monitor import recv_monitor_message

from kvstore.core.errors import (
    ConfigurationError,
    KVStoreError,
    ProtocolError,
    UnavailableError,
)
from kvstore.transports.status import from_status
from kvstore.transports.zmq.bulk_calls import BulkCall
from kvstore.transports.zmq.bulk_frames import (
    PIECE_BYTES_MAX,
    Head,
    Kind,
    encode_head,
    parse_failure,
    parse_head,
)
from kvstore.transports.zmq.bulk_messages import receive, send

_LOG = logging.getLogger(__name__)

WINDOW_BYTES = 16 << 20
"""Asked for and not here yet, or sent and not landed yet, of all calls together; the request that
fills it may pass it."""
REQUESTS_MAX = 256
"""The same in messages."""
RECONNECT_MS = 50
RECONNECT_MS_MAX = 1_000
HEARTBEAT_MS = 2_000
SILENT_MS = 15_000
"""A node from which nothing comes for so long is connected to anew."""
POLL_MS = 1_000
BURST = 16


@dataclass(frozen=True, slots=True)
class Submitted:
    call: BulkCall
    expires_at_s: float
    """On the monotonic clock."""


@dataclass(slots=True)
class _Asked:
    call: BulkCall
    left_bytes: int


class BulkLink:
    """Runs from construction to `close`. `submit` may be called by any thread; nothing else but the
    link's own thread touches the socket.

    Calls take turns, a request each, while the window has room. When the connection breaks, calls
    in flight fail; later ones wait for the next connection. Calls that were given up cost their
    window until their answers came or the connection broke.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        secure: Callable[[zmq.Socket[bytes]], None] | None = None,
        on_connected: Callable[[], None] = lambda: None,
    ) -> None:
        """Raises ConfigurationError if the endpoint cannot be understood; connects later.
        `on_connected` is called by the link's thread."""
        self.endpoint = endpoint
        self.connected = False
        self._on_connected = on_connected
        self._submitted: deque[Submitted] = deque()
        self._waiting: deque[Submitted] = deque()
        self._asked: dict[int, _Asked] = {}
        self._asked_bytes = 0
        self._ids = count(1)
        self._closing = False
        self._context = zmq.Context()
        self._dealer = self._context.socket(zmq.DEALER)
        _set_options(self._dealer)
        try:
            if secure is not None:
                secure(self._dealer)
            self._monitor = self._dealer.get_monitor_socket(
                zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
            )
            self._dealer.connect(endpoint)
        except BaseException as error:
            self._destroy()
            if not isinstance(error, zmq.ZMQError):
                raise
            raise ConfigurationError(
                f"cannot use endpoint {endpoint!r}: {error.strerror}; give tcp://host:port"
            ) from error
        self._wake = os.eventfd(0, os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name="kvstore-bulk", daemon=True)
        self._thread.start()

    def submit(self, submitted: Submitted) -> None:
        """Not after `close`."""
        self._submitted.append(submitted)
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Fail what is left, end the thread. Waits for the copy of one message at most."""
        self._closing = True
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        os.close(self._wake)

    def _run(self) -> None:
        poller = zmq.Poller()
        for readable in (self._dealer, self._monitor, self._wake):
            poller.register(readable, zmq.POLLIN)
        while not self._closing:
            ready = dict(poller.poll(POLL_MS))
            try:
                if self._wake in ready:
                    self._take_submitted()
                if self._monitor in ready:
                    self._see_event()
                self._receive(BURST)
                self._ask()
            except Exception:  # the boundary of this thread: without it no byte would pass again
                _LOG.exception("%s: bulk transfer failed; it goes on", self.endpoint)
                self._fail_all("a defect of the client: see its log")
        self._take_submitted()
        self._fail_all("the channel was closed")
        self._destroy()

    def _take_submitted(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        while self._submitted:
            self._waiting.append(self._submitted.popleft())

    def _see_event(self) -> None:
        event = recv_monitor_message(self._monitor)
        if event["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self.connected = True
            self._on_connected()
        elif self.connected:
            self.connected = False
            self._receive(None)  # answers that came before the connection broke
            self._fail_all("the node went away during the call; retry later")

    def _receive(self, limit: int | None) -> None:
        """Messages that are there already, at most `limit`."""
        while limit is None or limit > 0:
            try:
                frames = receive(self._dealer)
            except zmq.Again:
                return
            self._take(frames)
            self._ask()
            if limit is not None:
                limit -= 1

    def _take(self, frames: Sequence[memoryview]) -> None:
        try:
            head = parse_head(frames)
        except ProtocolError as error:
            _LOG.warning("%s: dropped a malformed answer: %s", self.endpoint, error)
            return
        asked = self._asked.get(head.request_id)
        if asked is None:
            return
        # An answer without pieces is the last one: it settles all that is left.
        came_bytes = min(head.length_bytes or asked.left_bytes, asked.left_bytes)
        asked.left_bytes -= came_bytes
        self._asked_bytes -= came_bytes
        if not asked.left_bytes:
            del self._asked[head.request_id]
        if head.kind is Kind.FAILED:
            asked.call.fail(from_status(*parse_failure(frames[1])))
        else:
            asked.call.take(head, frames[1:], came_bytes)

    def _ask(self) -> None:
        """Send requests, of each waiting call in turn, while there is room for their bytes."""
        while self.connected and self._waiting and self._has_room():
            waiting = self._waiting.popleft()
            left_s = waiting.expires_at_s - time.monotonic()
            if not waiting.call.wants_more or left_s <= 0:
                continue
            request = waiting.call.next_request(next(self._ids), left_s)
            self._send(waiting.call, request.head, request.data)
            if waiting.call.wants_more:
                self._waiting.append(waiting)

    def _has_room(self) -> bool:
        return self._asked_bytes < WINDOW_BYTES and len(self._asked) < REQUESTS_MAX

    def _send(self, call: BulkCall, head: Head, data: Sequence[memoryview]) -> None:
        length_bytes = head.length_bytes
        self._asked[head.request_id] = _Asked(call, length_bytes)
        self._asked_bytes += length_bytes
        # Without a bound of its own: the window is the bound.
        send(self._dealer, [encode_head(head), *data])

    def _fail_all(self, why: str) -> None:
        error: KVStoreError = UnavailableError(f"{self.endpoint}: {why}")
        for call in [*(a.call for a in self._asked.values()), *(w.call for w in self._waiting)]:
            call.fail(error)
        self._waiting.clear()
        self._asked.clear()
        self._asked_bytes = 0

    def _destroy(self) -> None:
        with suppress(zmq.ZMQError):
            self._dealer.disable_monitor()
        self._context.destroy(linger=0)


def _set_options(dealer: zmq.Socket[bytes]) -> None:
    dealer.setsockopt(zmq.LINGER, 0)
    dealer.setsockopt(zmq.MAXMSGSIZE, PIECE_BYTES_MAX)
    dealer.setsockopt(zmq.SNDHWM, 0)
    dealer.setsockopt(zmq.RCVHWM, 0)
    dealer.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
    dealer.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MS_MAX)
    dealer.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    dealer.setsockopt(zmq.HEARTBEAT_TIMEOUT, SILENT_MS)

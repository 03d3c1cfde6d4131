"""Serves the bytes of blocks over a ZeroMQ ROUTER socket, on a thread of its own."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import zmq

from kvstore.core.errors import (
    ConfigurationError,
    DeadlineExceededError,
    InvalidArgumentError,
    ProtocolError,
    ResourceExhaustedError,
)
from kvstore.transports.base import BulkStore
from kvstore.transports.status import to_status
from kvstore.transports.zmq.bulk_frames import (
    MESSAGE_BYTES_MAX,
    PIECE_BYTES_MAX,
    Head,
    Kind,
    Piece,
    encode_failure,
    encode_head,
    parse_head,
)
from kvstore.transports.zmq.bulk_messages import receive, send
from kvstore.transports.zmq.bulk_sending import Unsent

_LOG = logging.getLogger(__name__)

UNSENT_BYTES_MAX = 256 << 20
"""Of all peers together; reads beyond it wait, within their deadline."""
WAITING_MAX = 1_024
"""Reads that wait for that; more are answered ResourceExhaustedError at once."""
ANSWERS_QUEUED_MAX = 4_096
"""Messages for one peer; those beyond, for a peer that does not read, are dropped."""
REQUESTS_QUEUED_MAX = 64
"""Messages of one peer that were received and not served; then TCP makes the peer wait."""
HEARTBEAT_MS = 2_000
SILENT_MS = 15_000
"""A peer that takes nothing for so long is cut off, and what was queued for it given back."""
STOP_S = 2.0
POLL_UNSENT_MS = 20
POLL_IDLE_MS = 1_000
BURST = 32
"""Messages served between two looks at what else there is to do."""


@dataclass(frozen=True, slots=True)
class _Read:
    peer: bytes
    head: Head
    expires_at_s: float


class ZmqBulkServer:
    """`start` → `stop`. Sends lent memory and fills landing slots without a copy of its own but the
    one into the slot. Control verbs go elsewhere and never wait behind it.

    Bounds: UNSENT_BYTES_MAX, WAITING_MAX, the length of each frame, and the messages queued for,
    and from, each peer. What cannot be parsed is dropped and counted.
    """

    def __init__(
        self,
        store: BulkStore,
        endpoint: str,
        *,
        secure: Callable[[zmq.Socket[bytes]], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`secure` is applied to the socket before it binds."""
        self._store = store
        self._requested = endpoint
        self._secure = secure
        self._clock = clock
        self._unsent = Unsent()
        self._waiting: deque[_Read] = deque()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self.endpoint = ""
        """Where it listens, with the real port; known once started."""
        self.num_malformed = 0

    def start(self) -> None:
        """Raises ConfigurationError if the endpoint cannot be used."""
        assert self._thread is None, "started once"
        self._context = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        _set_options(self._router)
        try:
            if self._secure is not None:
                self._secure(self._router)
            self._router.bind(self._requested)
        except BaseException as error:
            self._context.destroy(linger=0)
            if not isinstance(error, zmq.ZMQError):
                raise
            raise ConfigurationError(
                f"cannot listen on {self._requested}: {error.strerror}; choose a free endpoint, "
                "tcp://address:port"
            ) from error
        self.endpoint = self._router.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")
        self._wake = os.eventfd(0, os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name="kvstore-bulk", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends within the serving of one message; clients see the connection close. Idempotent;
        call it off the event loop."""
        if self._thread is None or self._stopping:
            return
        self._stopping = True
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        os.close(self._wake)

    @property
    def port(self) -> int:
        """0 where it listens on no TCP port."""
        _, _, port = self.endpoint.rpartition(":")
        return int(port) if self.endpoint.startswith("tcp://") else 0

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._router, zmq.POLLIN)
        poller.register(self._wake, zmq.POLLIN)
        while not self._stopping:
            poller.poll(POLL_UNSENT_MS if self._unsent or self._waiting else POLL_IDLE_MS)
            try:
                self._serve_burst()
                self._unsent.give_back_sent()
                self._serve_waiting()
            except Exception:  # the boundary of this thread: without it no byte would pass again
                _LOG.exception("serving bulk bytes failed; it goes on")
        self._context.destroy(linger=0)
        self._unsent.wait_sent(STOP_S)  # the context is gone, and with it every message

    def _serve_burst(self) -> None:
        for _ in range(BURST):
            try:
                peer, *frames = receive(self._router)
            except zmq.Again:
                return
            self._serve(bytes(peer), frames)

    def _serve(self, peer: bytes, frames: Sequence[memoryview]) -> None:
        try:
            head = parse_head(frames)
            if head.kind not in (Kind.READ, Kind.WRITE):
                raise ProtocolError(f"{head.kind.name} is no request")
        except ProtocolError as error:
            self.num_malformed += 1
            _LOG.debug("malformed bulk message: %s", error)
            return
        if head.kind is Kind.WRITE:
            self._guarded(peer, head, lambda: self._land(peer, head, frames[1:]))
        elif len(self._waiting) >= WAITING_MAX:
            busy = ResourceExhaustedError(f"{WAITING_MAX} reads wait to be sent; retry later")
            self._fail(peer, head, busy)
        else:
            expires_at_s = self._clock() + head.deadline_ms / 1000
            self._waiting.append(_Read(peer, head, expires_at_s))
            self._serve_waiting()

    def _serve_waiting(self) -> None:
        while self._waiting:
            if self._unsent.length_bytes >= UNSENT_BYTES_MAX:
                self._unsent.give_back_sent()
                if self._unsent.length_bytes >= UNSENT_BYTES_MAX:
                    return
            read = self._waiting.popleft()
            self._guarded(read.peer, read.head, lambda: self._send(read))  # noqa: B023 - runs now

    def _guarded(self, peer: bytes, head: Head, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # the boundary of a call: every error becomes its answer
            self._fail(peer, head, error)

    def _land(self, peer: bytes, head: Head, data: Sequence[memoryview]) -> None:
        for piece, frame in zip(head.pieces, data, strict=True):
            self._store.land(head.session_id, head.grant_id, piece.index, piece.start_byte, frame)
        self._answer(peer, Head(Kind.LANDED, head.request_id))

    def _send(self, read: _Read) -> None:
        head = read.head
        if self._clock() >= read.expires_at_s:
            raise DeadlineExceededError("the deadline passed before the bytes could be sent")
        loan = self._store.lend(head.session_id, head.grant_id, [p.index for p in head.pieces])
        last: zmq.MessageTracker | None = None
        try:
            ranges = [
                _range(view, piece) for view, piece in zip(loan.views, head.pieces, strict=True)
            ]
            for first, end in _groups(head.pieces):
                data = Head(Kind.DATA, head.request_id, head.pieces[first:end])
                last = self._answer(read.peer, data, ranges[first:end]) or last
        finally:
            self._unsent.add(loan, last, head.length_bytes)

    def _fail(self, peer: bytes, head: Head, error: Exception) -> None:
        status, message = to_status(error)
        self._answer(peer, Head(Kind.FAILED, head.request_id), [encode_failure(status, message)])

    def _answer(
        self, peer: bytes, head: Head, data: Sequence[memoryview | bytes] = ()
    ) -> zmq.MessageTracker | None:
        """Tells when the last frame is sent that is not copied; None if there is none, or the peer
        is gone, or does not read: then the message is dropped."""
        with suppress(zmq.ZMQError):
            return send(self._router, [peer, encode_head(head), *data])
        return None


def _set_options(router: zmq.Socket[bytes]) -> None:
    router.setsockopt(zmq.LINGER, 0)
    router.setsockopt(zmq.MAXMSGSIZE, PIECE_BYTES_MAX)
    router.setsockopt(zmq.SNDHWM, ANSWERS_QUEUED_MAX)
    router.setsockopt(zmq.RCVHWM, REQUESTS_QUEUED_MAX)
    router.setsockopt(zmq.ROUTER_MANDATORY, 1)
    router.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    router.setsockopt(zmq.HEARTBEAT_TIMEOUT, SILENT_MS)


def _range(view: memoryview, piece: Piece) -> memoryview:
    end = piece.start_byte + piece.length_bytes
    if end > view.nbytes:
        raise InvalidArgumentError(
            f"bytes up to {end} of block {piece.index} were asked for, which has {view.nbytes}"
        )
    return view[piece.start_byte : end]


def _groups(pieces: Sequence[Piece]) -> Iterator[tuple[int, int]]:
    """Ranges [first, last) of pieces that go in one message each."""
    first, length_bytes = 0, 0
    for i, piece in enumerate(pieces):
        if i > first and length_bytes + piece.length_bytes > MESSAGE_BYTES_MAX:
            yield first, i
            first, length_bytes = i, 0
        length_bytes += piece.length_bytes
    if pieces:
        yield first, len(pieces)

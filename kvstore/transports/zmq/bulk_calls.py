"""One read or write of a batch of blocks: what is still to be asked or sent, what came back.

A call is shared by two threads: the one of the socket, which drives it, and the event loop that
waits for its outcome and may give it up. After `abandon` has returned, nothing is written into the
caller's memory any more; it waits for the copy of the piece that is in progress, if any.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

from kvstore.core.errors import KVStoreError, ProtocolError
from kvstore.tiers.base import MissReason
from kvstore.transports.base import BulkRead, BulkWrite
from kvstore.transports.incoming import Incoming
from kvstore.transports.zmq.bulk_frames import (
    MESSAGE_BYTES_MAX,
    PIECES_MAX,
    Head,
    Kind,
    Piece,
    deadline_ms,
    pieces_of,
)

PIECE_BYTES = 2 << 20
"""What a client cuts blocks into; see `cluster.bench.dataplane_remote` for what is fastest."""
ASKED_BYTES = 8 << 20
"""Of one READ: so many that asking costs next to nothing, and few enough, a few milliseconds, that
calls share the connection."""


@dataclass(frozen=True, slots=True)
class Request:
    head: Head
    data: Sequence[memoryview] = ()


class BulkCall(ABC):
    """`on_end` is called once, by the thread that ends the call, never after `abandon`."""

    def __init__(self, session_id: int, grant_id: int, pieces: Iterable[Piece]) -> None:
        self.error: KVStoreError | None = None
        self.on_end: Callable[[], None] = lambda: None
        self._session_id = session_id
        self._grant_id = grant_id
        self._unasked = deque(pieces)
        self._left_bytes = sum(piece.length_bytes for piece in self._unasked)
        self._lock = threading.Lock()
        self.over = False
        """Ended, or given up."""

    @property
    def wants_more(self) -> bool:
        return bool(self._unasked) and not self.over

    @abstractmethod
    def next_request(self, request_id: int, deadline_s: float) -> Request:
        """The next piece of work for the node. Only if `wants_more`."""

    @abstractmethod
    def _take(self, head: Head, data: Sequence[memoryview]) -> None:
        """Use an answer. Raises ProtocolError for one that was not asked for."""

    def take(self, head: Head, data: Sequence[memoryview], settled_bytes: int) -> None:
        """An answer came, to so many bytes of what this call asked for or sent."""
        with self._lock:
            if self.over:
                return
            try:
                self._take(head, data)
                self._left_bytes -= settled_bytes
            except ProtocolError as error:
                self.error = error
            ended = self.over = self.error is not None or self._left_bytes <= 0
        if ended:
            self.on_end()

    def fail(self, error: KVStoreError) -> None:
        with self._lock:
            if self.over:
                return
            self.over, self.error = True, error
        self.on_end()

    def abandon(self) -> None:
        """Idempotent; see the top of the module."""
        with self._lock:
            self.over = True

    def _next_pieces(self, limit_bytes: int) -> list[Piece]:
        pieces = [self._unasked.popleft()]
        room_bytes = limit_bytes - pieces[0].length_bytes
        while (
            self._unasked
            and self._unasked[0].length_bytes <= room_bytes
            and len(pieces) < PIECES_MAX
        ):
            room_bytes -= self._unasked[0].length_bytes
            pieces.append(self._unasked.popleft())
        return pieces

    def _head(
        self, kind: Kind, request_id: int, pieces: Sequence[Piece], deadline_s: float
    ) -> Head:
        return Head(
            kind, request_id, pieces, deadline_ms(deadline_s), self._session_id, self._grant_id
        )


class ReadCall(BulkCall):
    """`outcomes` are right once the call is over: FAILED or LATE where it ended early."""

    def __init__(self, session_id: int, lease_id: int, blocks: Sequence[BulkRead]) -> None:
        super().__init__(
            session_id,
            lease_id,
            chain.from_iterable(pieces_of(b.index, b.into.nbytes, PIECE_BYTES) for b in blocks),
        )
        self._blocks = {block.index: Incoming(block) for block in blocks}
        assert len(self._blocks) == len(blocks), "each block once"

    def next_request(self, request_id: int, deadline_s: float) -> Request:
        pieces = self._next_pieces(ASKED_BYTES)
        return Request(self._head(Kind.READ, request_id, pieces, deadline_s))

    def outcomes(self, unfinished: MissReason) -> list[MissReason | None]:
        """For each block, in the order of the call; `unfinished` is what those are that are not all
        there."""
        return [block.outcome(unfinished) for block in self._blocks.values()]

    def _take(self, head: Head, data: Sequence[memoryview]) -> None:
        if head.kind is not Kind.DATA:
            raise ProtocolError(f"a READ was answered by {head.kind.name}")
        for piece, frame in zip(head.pieces, data, strict=True):
            block = self._blocks.get(piece.index)
            if block is None:
                raise ProtocolError(f"the node sent block {piece.index}, which nobody asked for")
            block.take(piece.start_byte, frame)


class WriteCall(BulkCall):
    def __init__(self, session_id: int, reservation_id: int, blocks: Sequence[BulkWrite]) -> None:
        super().__init__(
            session_id,
            reservation_id,
            chain.from_iterable(pieces_of(b.index, b.data.nbytes, PIECE_BYTES) for b in blocks),
        )
        self._data = {block.index: block.data.cast("B") for block in blocks}
        assert len(self._data) == len(blocks), "each block once"

    def next_request(self, request_id: int, deadline_s: float) -> Request:
        pieces = self._next_pieces(MESSAGE_BYTES_MAX)
        data = [self._data[p.index][p.start_byte : p.start_byte + p.length_bytes] for p in pieces]
        return Request(self._head(Kind.WRITE, request_id, pieces, deadline_s), data)

    def _take(self, head: Head, data: Sequence[memoryview]) -> None:
        if head.kind is not Kind.LANDED:
            raise ProtocolError(f"a WRITE was answered by {head.kind.name}")

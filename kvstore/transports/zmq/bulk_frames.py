"""Frames that carry the bytes of blocks over ZeroMQ. Pure: parsing and encoding, no sockets.

A message is a head frame and, where it carries bytes, one frame for each piece. The head is

    offset  bytes  field
         0      2  "KB"
         2      1  version, 1
         3      1  kind
         4      4  deadline_ms: how long the sender of a request will wait
         8      8  request_id: chosen by the client, repeated in every answer
        16      8  session_id         (requests; 0 in answers)
        24      8  lease or reservation id      (same)
        32  16 * n  pieces: index (4), length_bytes (4), start_byte (8)

and numbers are little endian. A piece is a range of one block; `index` counts over the blocks that
the lease found, or that the reservation holds.

    kind          sent by  pieces  frames after the head
    1 READ        client   yes     none
    2 WRITE       client   yes     the bytes of each piece
    3 DATA        node     yes     the bytes of each piece
    4 LANDED      node     none    none
    5 FAILED      node     none    one: gRPC status code (1 byte), message in UTF-8

A READ is answered by DATA messages that together hold each of its pieces once, or by FAILED, in
which case nothing follows. A WRITE is answered by LANDED or FAILED. Pieces of one block come in the
order of their bytes, both ways. The client asks for, and sends, no more bytes than it has room for:
that is the flow control; nothing else paces the node.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

from kvstore.core.errors import ProtocolError

PIECE_BYTES_MAX = 2 << 20
"""Of one frame, either way: a larger one costs its sender the connection."""
MESSAGE_BYTES_MAX = PIECE_BYTES_MAX
"""Of all pieces that one WRITE or DATA holds: ZeroMQ delivers a message when all of it is there."""
READ_BYTES_MAX = 64 << 20
"""Of all pieces that one READ asks for."""
PIECES_MAX = 1_024
"""Of one message."""
FAILURE_BYTES_MAX = 4_096

_MAGIC, _VERSION = b"KB", 1
_HEAD = struct.Struct("<2sBBIQQQ")
_PIECE = struct.Struct("<IIQ")
_START_BYTE_MAX = 1 << 48
_DEADLINE_MS_MAX = 0xFFFFFFFF


class Kind(IntEnum):
    READ = 1
    WRITE = 2
    DATA = 3
    LANDED = 4
    FAILED = 5


_WITH_DATA = (Kind.WRITE, Kind.DATA)
_WITH_PIECES = (Kind.READ, *_WITH_DATA)
_KINDS = {int(kind): kind for kind in Kind}


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes [start_byte, start_byte + length_bytes) of one block."""

    index: int
    start_byte: int
    length_bytes: int


@dataclass(frozen=True, slots=True)
class Head:
    kind: Kind
    request_id: int
    pieces: Sequence[Piece] = ()
    deadline_ms: int = 0
    session_id: int = 0
    grant_id: int = 0
    """Of a lease or a reservation."""

    @property
    def length_bytes(self) -> int:
        return sum(piece.length_bytes for piece in self.pieces)


def deadline_ms(deadline_s: float) -> int:
    return min(max(int(deadline_s * 1000), 1), _DEADLINE_MS_MAX)


def encode_head(head: Head) -> bytes:
    fixed = _HEAD.pack(
        _MAGIC,
        _VERSION,
        head.kind,
        head.deadline_ms,
        head.request_id,
        head.session_id,
        head.grant_id,
    )
    pieces = (_PIECE.pack(p.index, p.length_bytes, p.start_byte) for p in head.pieces)
    return fixed + b"".join(pieces)


def parse_head(frames: Sequence[memoryview]) -> Head:
    """The head of a whole message, whose other frames are as it says. Raises ProtocolError."""
    if not frames:
        raise ProtocolError("a bulk message has at least a head frame")
    head = _parse_fixed(frames[0])
    lengths = [frame.nbytes for frame in frames[1:]]
    if head.kind is Kind.FAILED:
        if len(lengths) != 1 or not 1 <= lengths[0] <= FAILURE_BYTES_MAX:
            raise ProtocolError("FAILED has one more frame: the status and a short message")
    elif lengths != [p.length_bytes for p in head.pieces if head.kind in _WITH_DATA]:
        raise ProtocolError(f"the frames of {head.kind.name} are not as long as its pieces")
    return head


def encode_failure(status: int, message: str) -> bytes:
    return bytes([status]) + message.encode()[: FAILURE_BYTES_MAX - 1]


def parse_failure(frame: memoryview) -> tuple[int, str]:
    """(status code, message) of a frame that `parse_head` let pass."""
    return frame[0], bytes(frame[1:]).decode(errors="replace")


def pieces_of(index: int, length_bytes: int, piece_bytes: int) -> Iterator[Piece]:
    """A block in pieces of at most `piece_bytes`, in order."""
    for start_byte in range(0, length_bytes, piece_bytes):
        yield Piece(index, start_byte, min(piece_bytes, length_bytes - start_byte))


def _parse_fixed(frame: memoryview) -> Head:
    num_pieces, odd_bytes = divmod(frame.nbytes - _HEAD.size, _PIECE.size)
    if odd_bytes or not 0 <= num_pieces <= PIECES_MAX:
        raise ProtocolError(f"a head of {frame.nbytes} bytes holds no whole number of pieces")
    magic, version, kind, milliseconds, request_id, session_id, grant_id = _HEAD.unpack_from(frame)
    if magic != _MAGIC or version != _VERSION or kind not in _KINDS:
        raise ProtocolError("no bulk message of this version; do both ends run the same?")
    if (num_pieces > 0) != (_KINDS[kind] in _WITH_PIECES):
        raise ProtocolError(f"{_KINDS[kind].name} with {num_pieces} pieces")
    pieces = [
        Piece(index, start_byte, length_bytes)
        for index, length_bytes, start_byte in _PIECE.iter_unpack(frame[_HEAD.size :])
    ]
    for piece in pieces:
        if not 1 <= piece.length_bytes <= PIECE_BYTES_MAX or piece.start_byte > _START_BYTE_MAX:
            raise ProtocolError(f"{piece} is longer than {PIECE_BYTES_MAX} bytes, or nowhere")
    head = Head(_KINDS[kind], request_id, pieces, milliseconds, session_id, grant_id)
    limit_bytes = READ_BYTES_MAX if head.kind is Kind.READ else MESSAGE_BYTES_MAX
    if head.length_bytes > limit_bytes:
        raise ProtocolError(f"{head.kind.name} of {head.length_bytes} bytes; send it in parts")
    return head

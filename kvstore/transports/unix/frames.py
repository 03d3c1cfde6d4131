"""Frames of a call over a Unix socket: those of ZeroMQ in one piece each, behind their length.

    request   [length, 4][request id, 8][deadline_ms, 4][method's length, 1][method][payload]
    response  [length, 4][request id, 8][status, 1][payload, or error message in UTF-8]

Numbers are little endian; a length counts what follows it; the status is a gRPC status code.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from kvstore.core.errors import ProtocolError

MAX_FRAME_BYTES = 16 << 20
"""Bulk bytes do not travel here."""
MAX_DEADLINE_MS = 0xFFFFFFFF

_LENGTH = struct.Struct("<I")
_REQUEST = struct.Struct("<QIB")
_RESPONSE = struct.Struct("<QB")


@dataclass(frozen=True, slots=True)
class Request:
    id: int
    deadline_s: float
    method: str
    payload: bytes

    def encode(self) -> bytes:
        method = self.method.encode()
        deadline_ms = min(max(int(self.deadline_s * 1000), 1), MAX_DEADLINE_MS)
        size = _REQUEST.size + len(method) + len(self.payload)
        head = _LENGTH.pack(size) + _REQUEST.pack(self.id, deadline_ms, len(method))
        return head + method + self.payload


@dataclass(frozen=True, slots=True)
class Response:
    id: int
    status: int
    payload: bytes

    def encode(self) -> bytes:
        size = _RESPONSE.size + len(self.payload)
        return _LENGTH.pack(size) + _RESPONSE.pack(self.id, self.status) + self.payload


def parse_request(frame: bytes) -> Request:
    """Raises ProtocolError."""
    try:
        number, deadline_ms, length = _REQUEST.unpack_from(frame)
        end = _REQUEST.size + length
        if end > len(frame):
            raise ProtocolError("a request ends within the name of its method")
        return Request(number, deadline_ms / 1000, frame[_REQUEST.size : end].decode(), frame[end:])
    except (struct.error, UnicodeDecodeError) as error:
        raise ProtocolError("a request begins with id, deadline and the method in UTF-8") from error


def parse_response(frame: bytes) -> Response:
    """Raises ProtocolError."""
    try:
        number, status = _RESPONSE.unpack_from(frame)
    except struct.error as error:
        raise ProtocolError("a response begins with id and status") from error
    return Response(number, status, frame[_RESPONSE.size :])


class FrameReader:
    """Cuts a stream into frames. Holds at most one incomplete frame of MAX_FRAME_BYTES."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The frames that `data` completes. Raises ProtocolError for one that is too long."""
        if self._rest:
            self._rest += data
            data = bytes(self._rest) if self._is_complete() else b""
            if data:
                self._rest.clear()
        start = 0
        while len(data) - start >= _LENGTH.size:
            end = start + _LENGTH.size + self._length(data, start)
            if end > len(data):
                break
            yield data[start + _LENGTH.size : end]
            start = end
        self._rest += data[start:]

    def _is_complete(self) -> bool:
        """Whether there is a whole frame: a long one must not be copied for each of its pieces."""
        size = len(self._rest) - _LENGTH.size
        return size >= 0 and size >= self._length(self._rest, 0)

    @staticmethod
    def _length(data: bytes | bytearray, start: int) -> int:
        length: int = _LENGTH.unpack_from(data, start)[0]
        if length > MAX_FRAME_BYTES:
            raise ProtocolError(f"a frame of {length} bytes; {MAX_FRAME_BYTES} are accepted")
        return length

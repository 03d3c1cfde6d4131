"""Frames of a call over ZeroMQ.

    request   [request id, 8 bytes][method][deadline_ms, 4 bytes][payload]
    response  [request id, 8 bytes][status, 1 byte][payload, or error message in UTF-8]

Numbers are little endian; the status is a gRPC status code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvstore.core.errors import ProtocolError

MAX_MESSAGE_BYTES = 16 << 20
"""Of one frame, either way. Bulk bytes do not travel here."""

MAX_DEADLINE_MS = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Request:
    request_id: bytes
    method: str
    deadline_s: float
    payload: bytes

    def frames(self) -> list[bytes]:
        deadline_ms = min(max(int(self.deadline_s * 1000), 1), MAX_DEADLINE_MS)
        return [
            self.request_id,
            self.method.encode(),
            deadline_ms.to_bytes(4, "little"),
            self.payload,
        ]


@dataclass(frozen=True, slots=True)
class Response:
    request_id: bytes
    status: int
    payload: bytes

    def frames(self) -> list[bytes]:
        return [self.request_id, bytes([self.status]), self.payload]


def parse_request(frames: Sequence[bytes]) -> Request:
    if [len(frames), *(len(frames[i]) for i in (0, 2) if i < len(frames))] != [4, 8, 4]:
        raise ProtocolError("a request has 4 frames: id (8 bytes), method, deadline (4), payload")
    try:
        method = frames[1].decode()
    except UnicodeDecodeError as error:
        raise ProtocolError("the method of a request must be UTF-8") from error
    return Request(frames[0], method, int.from_bytes(frames[2], "little") / 1000, frames[3])


def parse_response(frames: Sequence[bytes]) -> Response:
    if [len(frames), *(len(frames[i]) for i in (0, 1) if i < len(frames))] != [3, 8, 1]:
        raise ProtocolError("a response has 3 frames: id (8 bytes), status (1 byte), payload")
    return Response(frames[0], frames[1][0], frames[2])

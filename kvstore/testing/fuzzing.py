"""Every parser of the store that reads what came from a socket or a file, ready to be fuzzed.

A parser may answer, or refuse with an error of `kvstore.core.errors`. Anything else is a defect:
another exception, a crash, a hang, memory out of proportion to the input. `make fuzz` drives these
with coverage feedback; the tests drive them with random damage to valid examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from random import Random

from kvstore.core.errors import KVStoreError
from kvstore.core.ids import BlockHash, BlockKey, BlockKeys, LayoutFingerprint
from kvstore.events import codec
from kvstore.events.null import NullEventSink
from kvstore.tiers.base import TierKind
from kvstore.tiers.disk.record import RecordHeader, decode_record_header
from kvstore.tiers.host.arena_header import ArenaHeader, decode_arena_header
from kvstore.transports.status import from_status
from kvstore.transports.zmq.frames import Request, Response, parse_request, parse_response
from kvstore.wire.v1 import event_pb2

_FRAME_BYTES_MAX = 64
_KEYS = BlockKeys(LayoutFingerprint(b"f" * 16), [BlockHash(bytes([i]) * 32) for i in range(3)])

_ARENA = ArenaHeader(1 << 20, 7)


@dataclass(frozen=True, slots=True)
class Parser:
    """One way in. `examples` are inputs that it takes."""

    name: str
    parse: Callable[[bytes], object]
    examples: Sequence[bytes]

    def __call__(self, data: bytes) -> None:
        """Raises whatever it must not raise."""
        with suppress(KVStoreError):
            self.parse(data)


def parsers() -> list[Parser]:
    return [
        Parser(
            "zmq-request", _parse_request, [_join(Request(b"i" * 8, "Match", 1, b"x").frames())]
        ),
        Parser("zmq-response", _parse_response, [_join(Response(b"i" * 8, 0, b"x").frames())]),
        Parser("status", _parse_status, [b"\x05SessionExpiredError: open a new one"]),
        Parser("event-batch", _parse_event_batch, [_event_batch()]),
        Parser("replay-response", _parse_replay_response, [_replay_response()]),
        Parser("disk-record", decode_record_header, [_record_header()]),
        Parser("arena-header", _parse_arena_header, [_ARENA.encode()]),
    ]


def damaged(example: bytes, rng: Random) -> Iterator[bytes]:
    """Without end: `example` with bits flipped, parts cut out, repeated or replaced."""
    while True:
        data = bytearray(example)
        for _ in range(rng.randint(1, 4)):
            _damage(data, rng)
        yield bytes(data)


def _damage(data: bytearray, rng: Random) -> None:
    start = rng.randint(0, len(data))
    end = min(start + rng.choice((1, 2, 4, 8, 40)), len(data))
    match rng.randrange(5):
        case 0 if start < len(data):
            data[start] ^= 1 << rng.randrange(8)
        case 1:
            del data[start:end]
        case 2:
            data[start:start] = data[start:end]
        case 3:
            data[start:end] = rng.randbytes(end - start)
        case _:
            data[start:end] = rng.choice((b"\x00", b"\xff", b"\x7f")) * (end - start)


def _join(frames: Sequence[bytes]) -> bytes:
    """Frames as one input: each with its length in a byte before it."""
    return b"".join(bytes([len(frame)]) + frame for frame in frames)


def _split(data: bytes) -> list[bytes]:
    frames = []
    while data:
        size = min(data[0], _FRAME_BYTES_MAX)
        frames.append(data[1 : 1 + size])
        data = data[1 + size :]
    return frames


def _parse_request(data: bytes) -> None:
    parse_request(_split(data))


def _parse_response(data: bytes) -> None:
    parse_response(_split(data))


def _parse_status(data: bytes) -> None:
    from_status(data[0] if data else 0, data[1:].decode(errors="replace"))


def _parse_event_batch(data: bytes) -> None:
    _deliver(codec.parse(event_pb2.EventBatch, data))


def _parse_replay_response(data: bytes) -> None:
    _deliver(codec.parse(event_pb2.ReplayResponse, data))


def _deliver(message: event_pb2.EventBatch | event_pb2.ReplayResponse) -> None:
    codec.deliver(message.events, NullEventSink())


def _event_batch() -> bytes:
    events = [*codec.stored_events(TierKind.HOST, _KEYS), codec.cleared_event(TierKind.DISK)]
    return event_pb2.EventBatch(
        publisher_id="node", epoch=1, sequence=1, events=events
    ).SerializeToString()


def _replay_response() -> bytes:
    events = codec.removed_events(TierKind.DISK, _KEYS)
    return event_pb2.ReplayResponse(
        epoch=1, snapshot=True, sequence=9, events=events, last=True
    ).SerializeToString()


def _record_header() -> bytes:
    return RecordHeader(BlockKey(_KEYS.layout, _KEYS.hashes[0]), 4096, 1, 1).encode()


def _parse_arena_header(data: bytes) -> None:
    decode_arena_header(data, _ARENA.file_bytes)

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

import numpy as np

from kvstore.codecs.base import Codec
from kvstore.codecs.frame import decode_block, encode_block, encoded_bytes_max
from kvstore.codecs.header import HEADER_BYTES, parse_header
from kvstore.codecs.registry import CODECS
from kvstore.core.checksum import checksum
from kvstore.core.errors import KVStoreError
from kvstore.core.ids import BlockHash, BlockKey, BlockKeys, LayoutFingerprint
from kvstore.core.layout import KVLayout
from kvstore.directory import records
from kvstore.directory.redis_holders import Holders
from kvstore.events import codec
from kvstore.events.null import NullEventSink
from kvstore.tiers.base import TierKind
from kvstore.tiers.disk.record import RecordHeader, decode_record_header
from kvstore.tiers.disk.summary import decode_summary, encode_summary, pack_row
from kvstore.tiers.host.arena_header import ArenaHeader, decode_arena_header
from kvstore.transports.status import from_status
from kvstore.transports.zmq import bulk_frames
from kvstore.transports.zmq.frames import Request, Response, parse_request, parse_response
from kvstore.wire.v1 import event_pb2, node_pb2

_FRAME_BYTES_MAX = 64
_DECODED_BYTES_MAX = 1 << 20
_LAYOUT = KVLayout(1, 1, 4, 4, "float32")
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
        Parser("bulk-message", _parse_bulk_message, [_bulk_message()]),
        Parser("node-record", records.parse, [_node_record()]),
        Parser("redis-holders", _parse_holders, [_holders()]),
        Parser("disk-record", _parse_record, [_record_header()]),
        Parser("disk-summary", _parse_summary, [_summary()]),
        Parser(
            "encoded-block",
            _parse_encoded_block,
            [_encoded_block(codec) for codec in CODECS.values()],
        ),
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


def _parse_bulk_message(data: bytes) -> None:
    """[length of the head, 2 bytes][head][other frames, each with its length in a byte]"""
    size = int.from_bytes(data[:2], "little")
    frames = [memoryview(frame) for frame in (data[2 : 2 + size], *_split(data[2 + size :]))]
    head = bulk_frames.parse_head(frames)
    if head.kind is bulk_frames.Kind.FAILED:
        bulk_frames.parse_failure(frames[1])


def _bulk_message() -> bytes:
    pieces = [bulk_frames.Piece(0, 0, 3), bulk_frames.Piece(0, 3, 5)]
    head = bulk_frames.encode_head(bulk_frames.Head(bulk_frames.Kind.WRITE, 1, pieces, 1_000, 2, 3))
    return len(head).to_bytes(2, "little") + head + _join([b"abc", b"defgh"])


def _node_record() -> bytes:
    return node_pb2.NodeRecord(node_id="node", boot_id=1, host_id="h").SerializeToString()


def _parse_holders(data: bytes) -> None:
    """The table of two holders, a byte before each part, and what a bucket says of one key."""
    frames = _split(data)
    Holders(b"1", frames[:4]).decode(b"".join(frames[4:]))


def _holders() -> bytes:
    return _join([b"2node-a", b"\x01\x00", b"3node-b", b"\x02\x00", b"\x02\x01\x00"])


def _parse_record(data: bytes) -> None:
    """As it is, and with a checksum that fits, or no damage would get past that."""
    decode_record_header(data)
    size = len(_record_header())
    decode_record_header(_sealed(data, size))


def _record_header() -> bytes:
    key = BlockKey(_KEYS.layout, _KEYS.hashes[0])
    return RecordHeader(key, 4096, 1, 1, segment_id=7).encode()


def _sealed(data: bytes, size: int) -> bytes:
    """`data` cut or filled up to `size` bytes, the last four of them a CRC of the rest."""
    fields = data[: size - 4].ljust(size - 4, b"\x00")
    return fields + checksum(fields).to_bytes(4, "little")


def _parse_summary(data: bytes) -> None:
    """[segment id, 1 byte][end, 4 bytes][rows]: as a file that is whole and says so, and as is."""
    decode_summary(data)
    end = int.from_bytes(data[1:5], "little")
    decode_summary(encode_summary(data[0] if data else 0, end, data[5:]))


def _summary() -> bytes:
    header = decode_record_header(_record_header())
    assert header is not None
    rows = b"".join(pack_row(i * header.record_bytes, header) for i in range(3))
    return bytes([7]) + (3 * header.record_bytes).to_bytes(4, "little") + rows


def _parse_encoded_block(data: bytes) -> None:
    header = parse_header(data[:HEADER_BYTES])
    if header.layout.block_bytes <= _DECODED_BYTES_MAX:
        into = memoryview(bytearray(header.layout.block_bytes))
        decode_block(memoryview(data), into)


def _encoded_block(codec: Codec) -> bytes:
    block = memoryview(np.linspace(-1, 1, _LAYOUT.block_bytes // 4, dtype=np.float32).tobytes())
    encoded = memoryview(bytearray(encoded_bytes_max(codec, _LAYOUT)))
    header = encode_block(codec, block, _LAYOUT, encoded)
    return bytes(encoded[: HEADER_BYTES + header.payload_bytes])


def _parse_arena_header(data: bytes) -> None:
    decode_arena_header(data, _ARENA.file_bytes)

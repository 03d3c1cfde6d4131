"""One record of the log: a header of one alignment unit, then the payload, padded to whole units.

Pure: bytes in, values out. Headers come from a disk, so that any bytes at all must be expected.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from kvstore.core.checksum import checksum
from kvstore.core.ids import (
    BLOCK_HASH_BYTES,
    FINGERPRINT_BYTES,
    BlockHash,
    BlockKey,
    LayoutFingerprint,
)
from kvstore.tiers.memory import ALIGNMENT, round_up

HEADER_BYTES = ALIGNMENT
MAGIC = b"KVRECORD"
VERSION = 2
_FIELDS = struct.Struct(f"<8sI{FINGERPRINT_BYTES}s{BLOCK_HASH_BYTES}sQIQQQI")
_CRC = struct.Struct("<I")
LENGTH_BYTES_MAX = 1 << 40
"""Above this a length is damage, not data; keeps sums far from any overflow of a file offset."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """What lies on disk in place of a block that went through a codec."""

    length_bytes: int
    checksum: int


@dataclass(frozen=True, slots=True)
class RecordHeader:
    key: BlockKey
    length_bytes: int
    """Of the block, as it comes back."""
    checksum: int
    """CRC-32C of the block, as it comes back."""
    sequence: int
    """Grows with every record of a store; of two records of one key the newer counts."""
    segment_id: int
    """Of the segment it was written to: not that of what an earlier use of the file left behind."""
    encoded: Encoded | None = None
    """None: the payload is the block itself."""

    @property
    def record_bytes(self) -> int:
        return record_bytes(self.encoded.length_bytes if self.encoded else self.length_bytes)

    def encode(self) -> bytes:
        """The used part of the header; the rest of its unit is zeros."""
        fields = _FIELDS.pack(
            MAGIC,
            VERSION,
            self.key.layout,
            self.key.hash,
            self.length_bytes,
            self.checksum,
            self.sequence,
            self.segment_id,
            *((self.encoded.length_bytes, self.encoded.checksum) if self.encoded else (0, 0)),
        )
        return fields + _CRC.pack(checksum(fields))


def record_bytes(length_bytes: int) -> int:
    """Bytes on disk of a payload of `length_bytes`."""
    return HEADER_BYTES + round_up(length_bytes)


def decode_record_header(data: bytes | bytearray | memoryview) -> RecordHeader | None:
    """Inverse of `encode`; None for anything that this version did not write. Raises nothing."""
    if len(data) < _FIELDS.size + _CRC.size:
        return None
    (crc,) = _CRC.unpack_from(data, _FIELDS.size)
    if checksum(bytes(data[: _FIELDS.size])) != crc:
        return None
    magic, version, layout, block_hash, length, crc, *rest = _FIELDS.unpack_from(data)
    sequence, segment_id, *encoded = rest
    if magic != MAGIC or version != VERSION or not 0 < length <= LENGTH_BYTES_MAX:
        return None
    if encoded[0] > LENGTH_BYTES_MAX:
        return None
    key = BlockKey(LayoutFingerprint(layout), BlockHash(block_hash))
    stored = Encoded(*encoded) if encoded[0] else None
    return RecordHeader(key, length, crc, sequence, segment_id, stored)

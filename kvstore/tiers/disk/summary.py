"""The headers of a whole segment in one small file beside it, so that a restart need not visit each
record. It is written when the segment is complete, or the tier closed.

A summary is a convenience: without it, or with one that is damaged or of another segment, the
headers of the segment are read one by one.
"""

from __future__ import annotations

import os
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kvstore.core.checksum import checksum
from kvstore.core.ids import BLOCK_HASH_BYTES, FINGERPRINT_BYTES
from kvstore.tiers.disk.record import HEADER_BYTES, LENGTH_BYTES_MAX, RecordHeader

MAGIC = b"KVSUMMRY"
VERSION = 1
RECORDS_MIN = 128
"""Fewer headers are read in the time that it takes to write and open another file."""
_HEAD = struct.Struct("<8sIQQI")
_ROW = struct.Struct(f"<{FINGERPRINT_BYTES}s{BLOCK_HASH_BYTES}sQQIQQI")
_COLUMNS = np.dtype(
    [
        ("layout", f"V{FINGERPRINT_BYTES}"),
        ("hash", f"V{BLOCK_HASH_BYTES}"),
        ("offset", "<u8"),
        ("length_bytes", "<u8"),
        ("checksum", "<u4"),
        ("sequence", "<u8"),
        ("encoded_bytes", "<u8"),
        ("encoded_checksum", "<u4"),
    ]
)
assert _COLUMNS.itemsize == _ROW.size


@dataclass(frozen=True, slots=True)
class Summary:
    segment_id: int
    end: int
    """Bytes of the segment that it speaks of; records after them are not in it."""
    rows: npt.NDArray[Any]
    """Columns of `_COLUMNS`, in the order written. `encoded_bytes` is 0 for a block stored raw."""


def pack_row(offset: int, header: RecordHeader) -> bytes:
    encoded = header.encoded
    return _ROW.pack(
        header.key.layout,
        header.key.hash,
        offset,
        header.length_bytes,
        header.checksum,
        header.sequence,
        encoded.length_bytes if encoded else 0,
        encoded.checksum if encoded else 0,
    )


def summary_bytes(records: int) -> int:
    """Of the summary of a segment with so many; 0 where none is made."""
    return _HEAD.size + records * _ROW.size if records >= RECORDS_MIN else 0


def encode_summary(segment_id: int, end: int, rows: bytes | bytearray) -> bytes:
    """`rows` are packed ones, one after the other."""
    return _HEAD.pack(MAGIC, VERSION, segment_id, end, _crc(segment_id, end, rows)) + rows


def decode_summary(data: bytes) -> Summary | None:
    """Inverse of `encode_summary`; None for anything else. Raises nothing."""
    if len(data) < _HEAD.size or (len(data) - _HEAD.size) % _ROW.size:
        return None
    magic, version, segment_id, end, crc = _HEAD.unpack_from(data)
    rows = memoryview(data)[_HEAD.size :]
    if magic != MAGIC or version != VERSION or crc != _crc(segment_id, end, rows):
        return None
    columns = np.frombuffer(rows, _COLUMNS)
    return Summary(segment_id, end, columns) if _is_sound(columns, end) else None


def _is_sound(rows: npt.NDArray[Any], end: int) -> bool:
    """Whether there are records, one after the other, the last of which ends at `end`."""
    if not len(rows):
        return False
    lengths = np.where(rows["encoded_bytes"] > 0, rows["encoded_bytes"], rows["length_bytes"])
    if not ((lengths > 0) & (lengths <= LENGTH_BYTES_MAX)).all():
        return False
    if not ((rows["length_bytes"] > 0) & (rows["length_bytes"] <= LENGTH_BYTES_MAX)).all():
        return False
    sizes = HEADER_BYTES * (1 + -(-lengths.astype(np.int64) // HEADER_BYTES))
    ends = np.cumsum(sizes)
    return bool((rows["offset"].astype(np.int64) == ends - sizes).all()) and end == int(ends[-1])


def _crc(segment_id: int, end: int, rows: bytes | bytearray | memoryview) -> int:
    return checksum(struct.pack("<QQ", segment_id, end) + rows)


def summary_path(segment: Path) -> Path:
    return segment.with_suffix(".summary")


def write_summary(segment: Path, data: bytes) -> int:
    """Beside the segment; returns its bytes, 0 if it could not be written."""
    path = summary_path(segment)
    with suppress(OSError):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            if os.write(file, data) == len(data):
                return len(data)
        finally:
            os.close(file)
    with suppress(OSError):
        path.unlink(missing_ok=True)
    return 0


def read_summary(segment: Path) -> Summary | None:
    with suppress(OSError):
        return decode_summary(summary_path(segment).read_bytes())
    return None

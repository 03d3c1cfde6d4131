"""CRC-32C: one function, so that every tier and transport computes the same one."""

from __future__ import annotations

import crc32c as _crc32c


def checksum(data: bytes | bytearray | memoryview) -> int:
    """CRC-32C of contiguous bytes (hardware instruction, about 10 GB/s). Releases the GIL above 32
    KiB."""
    return _crc32c.crc32c(data, gil_release_mode=-1)

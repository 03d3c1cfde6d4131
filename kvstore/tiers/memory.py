"""Raw memory for tiers: copying without holding up other threads, and alignment."""

from __future__ import annotations

import mmap

import numpy as np

from kvstore.core.checksum import checksum

ALIGNMENT = 4096
"""Bytes. Unit of the arena and of direct I/O; every page size and SSD sector size divides it."""

CACHED_BYTES = 256 << 10
"""What is copied at once before its checksum is taken: source and copy fit in a core's own cache
together, and two calls for each piece are few enough."""

SMALL_BYTES = 16 << 10
"""Up to here it costs less to keep the GIL than to give it up and get it back."""


def round_up(length: int, granule: int = ALIGNMENT) -> int:
    return -(-length // granule) * granule


def copy_bytes(into: memoryview, data: memoryview) -> None:
    """memcpy between contiguous buffers of one length. Releases the GIL, unlike slice
    assignment."""
    assert into.nbytes == data.nbytes
    np.copyto(np.frombuffer(into, np.uint8), np.frombuffer(data, np.uint8))


def copy_with_checksum(into: memoryview, data: memoryview, crc: int = 0) -> int:
    """memcpy between contiguous buffers of one length; returns the CRC-32C of the copied bytes, or
    of those that `crc` is the checksum of and the copied ones after them.

    One pass over memory for both, so it costs little more than the copy. The checksum is that of
    `into`, as read back from there: a source that changes meanwhile cannot make the two differ.
    Releases the GIL where that pays.
    """
    assert into.nbytes == data.nbytes
    if data.nbytes <= SMALL_BYTES:
        target_bytes = into.cast("B")
        target_bytes[:] = data.cast("B")
        return checksum(target_bytes, crc)
    target, source = np.frombuffer(into, np.uint8), np.frombuffer(data, np.uint8)
    for start in range(0, len(source), CACHED_BYTES):
        piece = target[start : start + CACHED_BYTES]
        np.copyto(piece, source[start : start + CACHED_BYTES])
        crc = checksum(piece.data, crc)
    return crc


def aligned_buffer(length: int) -> memoryview:
    """Private zeroed memory that starts on a page. Given back when the last view of it goes."""
    return memoryview(mmap.mmap(-1, max(length, 1)))[:length]


def is_aligned(data: memoryview) -> bool:
    """Whether `data` starts where direct I/O may."""
    return data.nbytes == 0 or address_of(data) % ALIGNMENT == 0


def address_of(data: memoryview) -> int:
    """Where it lies in this process. Good as long as `data` is."""
    address: int = np.frombuffer(data, np.uint8).__array_interface__["data"][0]
    return address

"""Raw memory for tiers: copying without holding up other threads, and alignment."""

from __future__ import annotations

import mmap

import numpy as np

ALIGNMENT = 4096
"""Bytes. Unit of the arena and of direct I/O; every page size and SSD sector size divides it."""


def round_up(length: int, granule: int = ALIGNMENT) -> int:
    return -(-length // granule) * granule


def copy_bytes(into: memoryview, data: memoryview) -> None:
    """memcpy between contiguous buffers of one length. Releases the GIL, unlike slice
    assignment."""
    assert into.nbytes == data.nbytes
    np.copyto(np.frombuffer(into, np.uint8), np.frombuffer(data, np.uint8))


def aligned_buffer(length: int) -> memoryview:
    """Private zeroed memory that starts on a page. Given back when the last view of it goes."""
    return memoryview(mmap.mmap(-1, max(length, 1)))[:length]


def is_aligned(data: memoryview) -> bool:
    """Whether `data` starts where direct I/O may."""
    return data.nbytes == 0 or _address(data) % ALIGNMENT == 0


def _address(data: memoryview) -> int:
    address: int = np.frombuffer(data, np.uint8).__array_interface__["data"][0]
    return address

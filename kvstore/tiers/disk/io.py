"""Vectored file I/O, past the page cache where the filesystem can. Raises OSError; maps nothing.

With O_DIRECT, offset, address and length of every buffer must be multiples of 4 KiB, which is what
callers here always pass. All calls release the GIL.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from kvstore.tiers.memory import ALIGNMENT, aligned_buffer

_DIRECT = getattr(os, "O_DIRECT", 0)
BUFFERS_MAX = os.sysconf("SC_IOV_MAX")
"""Of one call."""


def open_file(path: Path, *, direct: bool, create: bool = False) -> int:
    flags = os.O_RDWR | os.O_CLOEXEC | (_DIRECT if direct else 0)
    return os.open(path, flags | (os.O_CREAT | os.O_EXCL if create else 0), 0o600)


def supports_direct(folder: Path) -> bool:
    """Whether O_DIRECT works in a folder that this process has locked, found by writing and reading
    one unit. False also on any error."""
    if not _DIRECT:
        return False
    path = folder / "probe"
    try:
        path.unlink(missing_ok=True)
        file = open_file(path, direct=True, create=True)
        try:
            unit = aligned_buffer(ALIGNMENT)
            write_all(file, [unit], 0)
            return read_all(file, [unit], 0) == ALIGNMENT
        finally:
            os.close(file)
            path.unlink()
    except OSError:
        return False


def write_all(file: int, buffers: Sequence[memoryview], offset: int) -> None:
    """Write every byte at `offset`, in one call where the kernel takes it in one."""
    rest = list(buffers)
    while rest:
        written = os.pwritev(file, rest, offset)
        if written == 0:
            raise OSError("the filesystem wrote nothing and gave no error")
        offset += written
        rest = _after(rest, written)


def read_all(file: int, buffers: Sequence[memoryview], offset: int) -> int:
    """Fill the buffers from `offset`; returns the bytes read, fewer only at the end of the file.

    A count that is no whole number of units is such an end: direct I/O could not go on from there.
    """
    rest = list(buffers)
    total = 0
    while rest:
        count = os.preadv(file, rest, offset + total)
        total += count
        if count == 0 or count % ALIGNMENT:
            break
        rest = _after(rest, count)
    return total


def _after(buffers: list[memoryview], count: int) -> list[memoryview]:
    """What is left of the buffers after their first `count` bytes."""
    for i, buffer in enumerate(buffers):
        if count < buffer.nbytes:
            return [buffer[count:], *buffers[i + 1 :]]
        count -= buffer.nbytes
    return []


def sync_folder(folder: Path) -> None:
    """Make names of new files durable."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)

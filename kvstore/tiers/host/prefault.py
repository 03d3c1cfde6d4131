"""Has the kernel supply the memory of an arena before the first block is written there.

                 front                         front + ahead
  ───────────────┼─────────────────────────────┼─────────────────────────▶ arena
  slabs in use   │ supplied here, step by step │ costs no memory yet

Memory that was never touched is written at a fifth of the speed of other memory, for the kernel
stops at each page to find and clear it. A thread of low priority does that in advance.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from contextlib import suppress

Populate = Callable[[int, int], bool]
"""Supplies [offset, offset + length) of an arena's data; whether that worked."""

_MADV_POPULATE_WRITE = 23
_STEP_BYTES = 4 << 20
"""A few milliseconds: how long `close` may wait."""
_NICENESS = 10


class Prefaulter:
    """Keeps `ahead_bytes` of memory supplied ahead of the front, which only grows.

    Ownership: whoever makes it closes it, before the memory goes. Threads: `reach` from any one;
    the work is done on a thread of its own, with the GIL given up. Failure: where the kernel cannot
    do it, or has no memory left, the thread ends, and pages come as they are touched. Bound: at
    most `ahead_bytes` more than what was ever in use.
    """

    def __init__(self, populate: Populate, capacity_bytes: int, ahead_bytes: int) -> None:
        self._populate = populate
        self._capacity_bytes = capacity_bytes
        self._ahead_bytes = ahead_bytes
        self._changed = threading.Condition()
        self._front_bytes = 0
        self._closed = False
        self._supplied_bytes = 0
        self._thread = threading.Thread(target=self._run, name="kvstore-prefault", daemon=True)
        self._thread.start()

    @property
    def supplied_bytes(self) -> int:
        """Up to where memory was asked for."""
        return self._supplied_bytes

    def reach(self, front_bytes: int) -> None:
        """Blocks are written up to there from now on."""
        with self._changed:
            self._front_bytes = max(self._front_bytes, front_bytes)
            self._changed.notify()

    def close(self) -> None:
        """Idempotent. Waits for the step under way."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        while (step_bytes := self._next_step()) > 0:
            if not self._populate(self._supplied_bytes, step_bytes):
                break
            self._supplied_bytes += step_bytes

    def _next_step(self) -> int:
        """Waits until there is something to do; 0 = nothing ever again."""
        with self._changed:
            while not self._closed and self._supplied_bytes < self._capacity_bytes:
                goal = min(self._front_bytes + self._ahead_bytes, self._capacity_bytes)
                if self._supplied_bytes < goal:
                    return min(goal - self._supplied_bytes, _STEP_BYTES)
                self._changed.wait()
            return 0


def populate_at(address: int) -> Populate:
    """For memory mapped at `address`. The caller keeps it mapped as long as this is called."""
    libc = ctypes.CDLL(None, use_errno=True)
    madvise = libc.madvise  # not `mmap.madvise`, which keeps the GIL
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    madvise.restype = ctypes.c_int

    def populate(offset: int, length_bytes: int) -> bool:
        return bool(madvise(address + offset, length_bytes, _MADV_POPULATE_WRITE) == 0)

    return populate

"""Memory that ZeroMQ receives large messages into."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from functools import cache

from kvstore.transports.zmq.bulk_frames import PIECE_BYTES_MAX

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Numbers of mallopt(3), glibc."""
KEPT_BYTES = 128 << 20
"""What a thread's heap may keep for the next messages: more than a window of them."""


@cache
def keep_message_memory() -> None:
    """Let malloc keep the memory of one message for the next, in this process, from now on.

    By default it gives back to the system what a message of 2 MiB took, and each page of the next
    message is faulted in and zeroed anew, which costs about as much as copying it. For processes
    at either end of a bulk connection. Where there is no glibc, nothing happens.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, 2 * PIECE_BYTES_MAX)

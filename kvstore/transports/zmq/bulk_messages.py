"""Whole messages in and out of the sockets that carry bulk bytes; large frames are not copied.

Plain numbers for flags, and few calls: copying a block leaves nothing of this code in the caches,
so each step costs more here than it does in a loop of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import zmq

_NOW = int(zmq.NOBLOCK)
_MORE_NOW = int(zmq.NOBLOCK | zmq.SNDMORE)


def receive(socket: zmq.Socket[bytes]) -> list[memoryview]:
    """The frames of the next message. Raises zmq.Again if none is there."""
    frame = socket.recv(_NOW, copy=False)
    frames = [frame.buffer]
    while frame.more:
        frame = socket.recv(_NOW, copy=False)
        frames.append(frame.buffer)
    return frames


def send(
    socket: zmq.Socket[bytes], message: Sequence[memoryview | bytes]
) -> zmq.MessageTracker | None:
    """Queue a message; raises zmq.ZMQError if that cannot be done at once.

    The tracker tells when ZeroMQ has done with the last frame that it reads from the caller's
    memory, and so with all, for frames are sent in order. None if it has copied them all.
    """
    lent = [i for i, part in enumerate(message) if len(part) >= socket.copy_threshold]
    last_lent, end = lent[-1] if lent else -1, len(message) - 1
    tracker: zmq.MessageTracker | None = None
    for i, part in enumerate(message):
        flags = _NOW if i == end else _MORE_NOW
        if i == last_lent:
            tracker = socket.send(part, flags, copy=False, track=True)
        else:
            socket.send(part, flags, copy=False)
    return tracker

"""What this machine can do at best: the limits that cases are held against."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import zmq

from kvstore.tiers.memory import aligned_buffer

BLOCK_BYTES = 2 << 20
NUM_BLOCKS = 64
GROUP = 16
"""Blocks of one request of the ZeroMQ ceiling."""
DEADLINE_MS = 20_000


def random_blocks(count: int = NUM_BLOCKS, block_bytes: int = BLOCK_BYTES) -> list[memoryview]:
    """Random bytes, so that nothing on the way can compress or share them; page-aligned."""
    whole = aligned_buffer(count * block_bytes)
    rng = np.random.default_rng(0)
    np.frombuffer(whole, np.uint8)[:] = rng.integers(0, 256, len(whole), np.uint8)
    return [whole[i * block_bytes : (i + 1) * block_bytes] for i in range(count)]


def touched_blocks(count: int = NUM_BLOCKS, block_bytes: int = BLOCK_BYTES) -> list[memoryview]:
    """Writable blocks whose pages are there already."""
    whole = aligned_buffer(count * block_bytes)
    np.frombuffer(whole, np.uint8)[:] = 1
    return [whole[i * block_bytes : (i + 1) * block_bytes] for i in range(count)]


def memcpy(into: Sequence[memoryview], data: Sequence[memoryview]) -> None:
    """One memcpy for each block, on one thread."""
    for target, source in zip(into, data, strict=True):
        target[:] = source


class RawZmq:
    """A bare ZeroMQ pair over loopback TCP: another process sends blocks, this one copies them out
    of their frames into its own buffers. No protocol, no checksum."""

    def __init__(self, endpoint: str) -> None:
        self._context = zmq.Context(1)
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RCVTIMEO, DEADLINE_MS)
        self._socket.connect(endpoint)

    def fetch(self, into: Sequence[memoryview]) -> None:
        for start in range(0, len(into), GROUP):
            group = into[start : start + GROUP]
            self._socket.send(len(group).to_bytes(4, "little"))
            for target in group:
                target[:] = self._socket.recv(copy=False).buffer

    def close(self) -> None:
        self._socket.send(b"")
        self._socket.close(linger=DEADLINE_MS)
        self._context.term()


@contextmanager
def raw_zmq_tcp() -> Iterator[RawZmq]:
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    server = spawn.Process(target=_serve_raw_zmq, args=(theirs,), daemon=True)
    server.start()
    raw = RawZmq(ours.recv())
    try:
        yield raw
    finally:
        raw.close()
        server.join(DEADLINE_MS / 1000)


def _serve_raw_zmq(pipe: multiprocessing.connection.Connection) -> None:
    context = zmq.Context(1)
    router = context.socket(zmq.ROUTER)
    port = router.bind_to_random_port("tcp://127.0.0.1")
    blocks = random_blocks(GROUP)
    pipe.send(f"tcp://127.0.0.1:{port}")
    while True:
        peer, count = router.recv_multipart()
        if not count:
            break
        for block in blocks[: int.from_bytes(count, "little")]:
            router.send_multipart([peer, block], copy=False)
    context.destroy()


class DirectFile:
    """A file that is read and written past the page cache, one block at a time."""

    def __init__(self, folder: Path, size_bytes: int) -> None:
        self._path = folder / "ceiling.bin"
        flags = os.O_RDWR | os.O_CREAT | os.O_DIRECT
        self._descriptor = os.open(self._path, flags, 0o600)
        os.posix_fallocate(self._descriptor, 0, size_bytes)

    def write(self, blocks: Sequence[memoryview]) -> None:
        """And make durable."""
        offset = 0
        for block in blocks:
            offset += os.pwrite(self._descriptor, block, offset)
        os.fdatasync(self._descriptor)

    def read(self, into: Sequence[memoryview]) -> None:
        offset = 0
        for block in into:
            offset += os.preadv(self._descriptor, [block], offset)

    def close(self) -> None:
        os.close(self._descriptor)
        self._path.unlink()

"""Mooncake Store beside ours: run by the Python that it is installed in, which knows nothing of us.

Starts a master and a process that stores, opens a client, and then answers commands: one JSON
object a line on stdin, one on stdout. All times are taken here, around Mooncake's calls alone.
Everything ends when stdin does.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

STORED_BYTES = 3 << 30
BUFFER_BYTES = 64 << 20
START_S = 20.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def open_store(master: str, stored_bytes: int) -> Any:
    """A client of the master, that stores so many bytes itself. Tries until the master is there."""
    from mooncake.store import MooncakeDistributedStore  # type: ignore[import-not-found]

    end_s = time.monotonic() + START_S
    while time.monotonic() < end_s:
        store = MooncakeDistributedStore()
        host = f"127.0.0.1:{free_port()}"
        if not store.setup(host, "P2PHANDSHAKE", stored_bytes, BUFFER_BYTES, "tcp", "", master):
            return store
        time.sleep(0.3)
    raise SystemExit("Mooncake's client could not be set up")


class Peer:
    """Blocks of one size in registered buffers, put and got in batches."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self._number = 0
        self._size = self._batch = 0
        self._data = self._into = np.zeros(0, np.uint8)
        self._keys: list[list[str]] = []

    def prepare(self, size: int, batch: int) -> None:
        for array in (self._data, self._into):
            if array.nbytes:
                self._store.unregister_buffer(array.ctypes.data)
        self._size, self._batch = size, batch
        self._data = np.random.default_rng(0).integers(0, 256, size * batch, np.uint8)
        self._into = np.zeros_like(self._data)
        for array in (self._data, self._into):
            assert self._store.register_buffer(array.ctypes.data, array.nbytes) == 0

    def put(self, batches: int) -> float:
        """Seconds to put so many batches under new keys."""
        self._keys = [
            [f"{self._number}/{b}/{i}" for i in range(self._batch)] for b in range(batches)
        ]
        self._number += 1
        here, sizes = self._addresses(self._data), [self._size] * self._batch
        started_s = time.perf_counter()
        codes = [self._store.batch_put_from(keys, here, sizes) for keys in self._keys]
        elapsed_s = time.perf_counter() - started_s
        assert not any(code for batch in codes for code in batch), "a put failed"
        return elapsed_s

    def get(self) -> float:
        """Seconds to get what was put last; the copies are compared."""
        into, sizes = self._addresses(self._into), [self._size] * self._batch
        started_s = time.perf_counter()
        codes = [self._store.batch_get_into(keys, into, sizes) for keys in self._keys]
        elapsed_s = time.perf_counter() - started_s
        assert all(code == self._size for batch in codes for code in batch), "a get failed"
        assert (self._into == self._data).all()
        return elapsed_s

    def latency(self, turns: int) -> float:
        """Median seconds of a get of one block at a time."""
        keys = [key for batch in self._keys for key in batch]
        address, times = self._into.ctypes.data, []
        for turn in range(turns):
            key = keys[turn % len(keys)]
            started_s = time.perf_counter()
            assert self._store.get_into(key, address, self._size) == self._size
            times.append(time.perf_counter() - started_s)
        return median(times)

    def clear(self) -> None:
        self._store.remove_all()

    def _addresses(self, array: Any) -> list[int]:
        return [array.ctypes.data + i * self._size for i in range(self._batch)]


def answer_commands(peer: Peer) -> None:
    for line in sys.stdin:
        command = json.loads(line)
        result = getattr(peer, command.pop("verb"))(**command)
        print(json.dumps({"result": result}), flush=True)  # noqa: T201


def store_until_killed(master: str) -> None:
    store = open_store(master, STORED_BYTES)
    print("ready", flush=True)  # noqa: T201
    sys.stdin.read()
    store.close()


def main() -> None:
    beside = str(Path(sys.executable).parent)
    binary = shutil.which("mooncake_master", path=f"{beside}:{os.environ['PATH']}")
    assert binary is not None, "mooncake_master is not beside this Python"
    address, metrics = f"127.0.0.1:{free_port()}", str(free_port())
    options = ["--rpc_port", address.rpartition(":")[2], "--metrics_port", metrics]
    master = subprocess.Popen(
        [binary, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    storing = subprocess.Popen(
        [sys.executable, __file__, address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert storing.stdout is not None
        while storing.stdout.readline().strip() != "ready":
            assert storing.poll() is None, "the process that stores did not start"
        peer = Peer(open_store(address, 0))
        print("ready", flush=True)  # noqa: T201
        answer_commands(peer)
    finally:
        for process in (storing, master):
            process.kill()
            process.wait()
    os._exit(0)  # Mooncake's threads do not end by themselves


if __name__ == "__main__":
    if len(sys.argv) > 1:
        store_until_killed(sys.argv[1])
    else:
        main()

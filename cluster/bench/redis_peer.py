"""Redis beside ours: a server of its own, and the client that programs in Python use with it."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from statistics import median

from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.utils import HIREDIS_AVAILABLE

from cluster.bench.alternate import best_rates, seconds_of
from kvstore.core.errors import ConfigurationError

START_S = 10.0
STOP_S = 10.0
RETRY_S = 0.05
PROBE_BYTES = 1 << 20


class RedisPeer:
    """Blocks of one size as values of type bytes, set and got in batches."""

    def __init__(self, client: Redis, way: str) -> None:
        """`way`: how the server is reached, in words."""
        self.way = f"{way}, {'with' if HIREDIS_AVAILABLE else 'without'} hiredis"
        self._client = client
        self._values: Sequence[bytes] = ()
        self._keys: list[list[str]] = []
        self._numbers = count()

    def prepare(self, blocks: Sequence[memoryview]) -> None:
        self.clear()
        self._values = [bytes(block) for block in blocks]

    def put_s(self, batches: int) -> float:
        """Seconds to put the blocks under new keys, so many times."""
        number, batch = next(self._numbers), range(len(self._values))
        self._keys = [[f"{number}/{b}/{i}" for i in batch] for b in range(batches)]
        works = [dict(zip(keys, self._values, strict=True)) for keys in self._keys]
        started_s = time.perf_counter()
        stored = [self._client.mset(work) for work in works]
        elapsed_s = time.perf_counter() - started_s
        assert all(stored), "a put failed"
        return elapsed_s

    def get_s(self) -> float:
        """Seconds to get what was put last; the last batch is compared."""
        last: list[object] = []

        def get() -> None:
            for keys in self._keys:
                last[:] = self._client.mget(keys)

        elapsed_s = seconds_of(get)
        assert last == self._values
        return elapsed_s

    def latency_s(self, turns: int) -> float:
        """Median of the gets of one block at a time."""
        keys, times = [key for batch in self._keys for key in batch], []
        for turn in range(turns):
            started_s = time.perf_counter()
            value = self._client.get(keys[turn % len(keys)])
            times.append(time.perf_counter() - started_s)
            assert value is not None
        return median(times)

    def clear(self) -> None:
        self._client.flushall()


@contextmanager
def redis_peer(server: Path, folder: Path) -> Iterator[RedisPeer]:
    """A server that writes nothing to disk, reached by its Unix socket or TCP, whichever is faster
    here. Raises ConfigurationError if it does not start."""
    path, port = folder / "redis.sock", _free_port()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--unixsocket", str(path)]
    process = subprocess.Popen(
        [server, *options, "--save", "", "--appendonly", "no", "--dir", str(folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    ways = {
        "its Unix socket": Redis(unix_socket_path=str(path)),
        "TCP on loopback": Redis(host="127.0.0.1", port=port),
    }
    try:
        for client in ways.values():
            _wait_for(client, process, server)
        way = _fastest(ways)
        yield RedisPeer(ways[way], way)
    finally:
        for client in ways.values():
            client.close()
        process.terminate()
        try:
            process.wait(STOP_S)
        finally:
            process.kill()
            process.wait()


def _fastest(ways: dict[str, Redis]) -> str:
    next(iter(ways.values())).set("probe", bytes(PROBE_BYTES))
    works = {way: lambda client=client: client.get("probe") for way, client in ways.items()}
    rates = best_rates(PROBE_BYTES, works)
    return max(rates, key=rates.__getitem__)


def _wait_for(client: Redis, process: subprocess.Popen[bytes], server: Path) -> None:
    end_s = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < end_s:
        try:
            client.ping()
        except RedisConnectionError:
            time.sleep(RETRY_S)
        else:
            return
    raise ConfigurationError(f"{server} did not start; see whether it is a redis-server")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

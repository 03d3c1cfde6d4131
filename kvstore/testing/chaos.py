"""Kills writers, readers and nodes at random points, and checks what is left. One seed, one run;
`make chaos` does a thousand.

A run has one node, writers and readers, each a process of its own, and a subscriber that keeps the
node's inventory from its events. After some milliseconds a process gets SIGKILL. Then:

- nobody ever read bytes other than those that its key stands for;
- all that the dead client held is free within its lease time: no session, lease, reservation or
  orphaned slot is left, and the host tier holds the bytes of its blocks and no more;
- a killed node, started again on the same disk, has all blocks that it had announced to be there.
"""

from __future__ import annotations

import asyncio
import hashlib
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from random import Random

from kvstore.client.aio import Client
from kvstore.core.errors import KVStoreError
from kvstore.core.ids import BlockHash, BlockKey, BlockKeys, LayoutFingerprint
from kvstore.events.null import NullEventSink
from kvstore.events.subscriber import EventSubscriber
from kvstore.node.config import NodeConfig
from kvstore.node.daemon import Node, serve
from kvstore.tiers.base import MissReason, TierKind
from kvstore.wire.v1 import block_pb2

LAYOUT = LayoutFingerprint(b"chaos-layout-016")
BLOCK_BYTES = 48 << 10
NUM_KEYS = 96
"""Their bytes fit the disk tier, and not the host tier: blocks are evicted and brought up again."""
HOST_BYTES = 2 << 20
DISK_BYTES = 24 << 20
LEASE_TTL_MS = 400
SETTLE_S = 10.0
"""Longest wait for a state that must come; far beyond the lease time, for slow machines."""
VICTIMS = ("writer", "reader", "node")
WRONG_BYTES = 3
"""Exit status of a process that read what it must never read."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run went. `problems` is empty where all held."""

    seed: int
    killed: str
    durable_blocks: int
    """Announced to be on disk before the node was killed, and looked for afterwards."""
    problems: Sequence[str]


class _Held(NullEventSink):
    """The node's inventory as its events tell it."""

    def __init__(self) -> None:
        self.by_tier: dict[TierKind, set[BlockKey]] = {tier: set() for tier in TierKind}

    def stored(self, tier: TierKind, keys: BlockKeys) -> None:
        self.by_tier[tier].update(keys)

    def removed(self, tier: TierKind, keys: BlockKeys) -> None:
        self.by_tier[tier].difference_update(keys)

    def cleared(self, tier: TierKind) -> None:
        self.by_tier[tier].clear()

    def reset(self) -> None:
        for held in self.by_tier.values():
            held.clear()


def run(seed: int) -> Outcome:
    """One run, in a folder and processes of its own, which are gone when it returns."""
    with tempfile.TemporaryDirectory(prefix="kvstore-chaos-") as folder:
        return asyncio.run(_Run(seed, Path(folder)).outcome())


def victim_of(seed: int) -> str:
    """What a run with this seed kills."""
    return Random(seed).choice(VICTIMS)  # noqa: S311


class _Run:
    def __init__(self, seed: int, folder: Path) -> None:
        self._rng = Random(seed)  # noqa: S311 - a repeatable choice, not a secret
        self._seed = seed
        self._config = NodeConfig(
            node_id="chaos",
            host=HOST_BYTES,
            disk=DISK_BYTES,
            disk_path=folder / "disk",
            zmq_endpoint=f"ipc://{folder}/verbs",
            event_endpoint=f"ipc://{folder}/events",
            replay_endpoint=f"ipc://{folder}/replay",
            lease_ttl_ms=LEASE_TTL_MS,
        )
        self._held = _Held()
        self._problems: list[str] = []

    async def outcome(self) -> Outcome:
        victim = self._rng.choice(VICTIMS)
        durable: set[BlockKey] = set()
        with _node(self._config) as node, self._clients() as clients:
            await self._live_for(self._rng.uniform(0.02, 0.35))
            if victim == "node":
                durable = set(self._held.by_tier[TierKind.DISK])
            _kill(node if victim == "node" else clients[victim])
            await self._live_for(self._rng.uniform(0, 0.1))
            self._stop(clients)
            if victim != "node":
                await self._check_freed()
        if victim == "node":
            with _node(self._config):
                await self._check_warm(durable)
        return Outcome(self._seed, victim, len(durable), self._problems)

    async def _live_for(self, seconds: float) -> None:
        """Let the others work, and learn what the node says it holds."""
        subscriber = EventSubscriber(
            "chaos", self._config.event_endpoint, self._config.replay_endpoint, self._held
        )
        await subscriber.start()
        await asyncio.sleep(seconds)
        await subscriber.stop()

    @contextmanager
    def _clients(self) -> Iterator[dict[str, ForkServerProcess]]:
        works = {"writer": write_forever, "writer-2": write_forever, "reader": read_forever}
        seeds = {name: self._rng.randrange(1 << 30) for name in works}
        clients = {
            name: _start(work, self._config.zmq_endpoint, seeds[name])
            for name, work in works.items()
        }
        try:
            yield clients
        finally:
            for process in clients.values():
                _kill(process)

    def _stop(self, clients: dict[str, ForkServerProcess]) -> None:
        """End the clients, and see whether any of them had met wrong bytes."""
        for name, process in clients.items():
            _kill(process)
            if process.exitcode == WRONG_BYTES:
                self._problems.append(f"{name} read wrong bytes")

    async def _check_freed(self) -> None:
        async with await _connect(self._config.zmq_endpoint) as client:
            left: list[str] = []
            with suppress(TimeoutError):
                async with asyncio.timeout(SETTLE_S):
                    while left := await _left_behind(client):  # noqa: ASYNC110 - the node's state
                        await asyncio.sleep(0.02)
            self._problems += left
            await self._check_bytes(client, _all_keys())

    async def _check_warm(self, durable: set[BlockKey]) -> None:
        async with await _connect(self._config.zmq_endpoint) as client:
            misses = await self._check_bytes(client, _all_keys())
            lost = [i for i, key in enumerate(_all_keys()) if key in durable and i in misses]
            self._problems += [f"durable block {i} is gone: {misses[i].name}" for i in lost]

    async def _check_bytes(self, client: Client, keys: BlockKeys) -> dict[int, MissReason]:
        misses: dict[int, MissReason] = {}
        for start in range(0, len(keys), 16):  # they do not all fit the host tier at once
            part = keys[start : start + 16]
            into = [bytearray(BLOCK_BYTES) for _ in part.hashes]
            missed = await client.get(part, [memoryview(b) for b in into], deadline_s=SETTLE_S)
            misses |= {start + i: reason for i, reason in missed.items()}
            for i, block in enumerate(into):
                if i not in missed and block != content(part.hashes[i]):
                    self._problems.append(f"block {start + i} has wrong bytes")
        return misses


async def _left_behind(client: Client) -> list[str]:
    """What the node still holds for clients other than this one."""
    seen = await client.statistics()
    host = next(tier for tier in seen.tiers if tier.tier == block_pb2.TIER_HOST)
    expected_bytes = host.blocks * BLOCK_BYTES
    left = {
        "sessions": seen.sessions - 1,
        "leases": seen.leases,
        "reservations": seen.reservations,
        "orphaned blocks": seen.orphaned_blocks,
        "bytes of no block": host.used_bytes - expected_bytes,
    }
    return [f"{number} {name} are left" for name, number in left.items() if number]


def write_forever(endpoint: str, seed: int) -> None:
    """A client process: puts random runs of blocks until it is killed."""
    asyncio.run(_forever(endpoint, Random(seed), _write))  # noqa: S311


def read_forever(endpoint: str, seed: int) -> None:
    """A client process: gets random runs of blocks, and exits if one is wrong."""
    asyncio.run(_forever(endpoint, Random(seed), _read))  # noqa: S311


async def _forever(
    endpoint: str, rng: Random, work: Callable[[Client, Random], Awaitable[None]]
) -> None:
    client = await _connect(endpoint)
    while True:
        with suppress(KVStoreError):  # the node may be the one that was killed
            await work(client, rng)


async def _write(client: Client, rng: Random) -> None:
    keys = _some_keys(rng)
    await client.put(keys, [memoryview(content(h)) for h in keys.hashes], deadline_s=1.0)


async def _read(client: Client, rng: Random) -> None:
    keys = _some_keys(rng)
    into = [bytearray(BLOCK_BYTES) for _ in keys.hashes]
    misses = await client.get(keys, [memoryview(b) for b in into], deadline_s=1.0)
    for i, (block_hash, block) in enumerate(zip(keys.hashes, into, strict=True)):
        if i not in misses and block != content(block_hash):
            os._exit(WRONG_BYTES)


def serve_node(config: NodeConfig, pipe: Connection) -> None:
    """A node process: says when it serves."""

    def ready(node: Node) -> None:
        pipe.send(True)

    asyncio.run(serve(config, ready))


def content(block_hash: BlockHash) -> bytes:
    """The one content that a key may have."""
    return (block_hash * (BLOCK_BYTES // len(block_hash) + 1))[:BLOCK_BYTES]


def _all_keys() -> BlockKeys:
    return BlockKeys(
        LAYOUT,
        [BlockHash(hashlib.sha256(i.to_bytes(4, "little")).digest()) for i in range(NUM_KEYS)],
    )


def _some_keys(rng: Random) -> BlockKeys:
    first = rng.randrange(NUM_KEYS)
    return _all_keys()[first : first + rng.randint(1, 8)]


async def _connect(endpoint: str) -> Client:
    deadline_s = time.monotonic() + SETTLE_S
    while True:
        try:
            return await Client.connect(endpoint, client_name="chaos", deadline_s=1.0)
        except KVStoreError:
            if time.monotonic() > deadline_s:
                raise


@contextmanager
def _node(config: NodeConfig) -> Iterator[ForkServerProcess]:
    ours, theirs = multiprocessing.Pipe()
    process = _start(serve_node, config, theirs)
    try:
        if not ours.poll(SETTLE_S):
            raise RuntimeError("the node did not come up")
        yield process
    finally:
        _kill(process)


def _start(work: Callable[..., None], *arguments: object) -> ForkServerProcess:
    process = _fork_server().Process(target=work, args=arguments, daemon=True)
    process.start()
    return process


def _fork_server() -> ForkServerContext:
    """Forks from a process that has all modules imported and no thread yet: a start costs 20 ms."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kvstore.testing.chaos"])
    return context


def _kill(process: ForkServerProcess) -> None:
    """Idempotent; a process that ended by itself keeps its exit status."""
    if process.is_alive() and process.pid is not None:
        os.kill(process.pid, signal.SIGKILL)
    process.join(SETTLE_S)

"""Kills and stalls writers, readers and nodes at random points, and checks what is left. One seed,
one run; `make chaos` does a thousand.

A run has one node, writers and readers, each a process of its own, and a subscriber that keeps the
node's inventory from its events. After some milliseconds a victim is struck:

- a writer, a reader, the node, or the node and a writer at once get SIGKILL;
- a stalled writer is stopped in the middle of its work for longer than its lease, while others
  write its keys and need its memory; then it goes on for a moment, and is killed.

Then:

- nobody ever read bytes other than those that its key stands for;
- all that the dead client held is free within its lease time: no session, lease, reservation or
  orphaned slot is left, and the host tier holds the bytes of its blocks and no more;
- a killed node, started again on the same disk, has all blocks that it had announced to be there.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from random import Random

from kvstore.client.aio import Client
from kvstore.core.errors import ReservationExpiredError
from kvstore.core.ids import BlockKey, BlockKeys
from kvstore.events.null import NullEventSink
from kvstore.events.subscriber import EventSubscriber
from kvstore.node.config import NodeConfig
from kvstore.testing.chaos_clients import (
    BLOCK_BYTES,
    SETTLE_S,
    WRONG_BYTES,
    all_keys,
    connect,
    content,
    contents,
    put_forever,
    read_forever,
    write_slowly_forever,
)
from kvstore.testing.chaos_processes import go_on, kill, node_process, stall, start
from kvstore.tiers.base import MissReason, TierKind
from kvstore.wire.v1 import block_pb2

HOST_BYTES = 2 << 20
DISK_BYTES = 24 << 20
LEASE_TTL_MS = 400
VICTIMS = ("writer", "reader", "node", "stalled writer", "node and writer")
_PART_KEYS = 16
"""Keys in one call of the checks: all of them do not fit the host tier at once."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run went. `problems` is empty where all held."""

    seed: int
    killed: str
    durable_blocks: int
    """Announced to be on disk before the node was killed, and looked for afterwards."""
    orphaned_blocks: int
    """Whose memory was kept back while their writer was stalled."""
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
    """What a run with this seed strikes."""
    return VICTIMS[seed % len(VICTIMS)]


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
        self._num_orphaned = 0

    async def outcome(self) -> Outcome:
        victim = victim_of(self._seed)
        durable: set[BlockKey] = set()
        with node_process(self._config) as node, self._clients() as clients:
            await self._live_for(self._rng.uniform(0.02, 0.35))
            if "node" in victim:
                durable = set(self._held.by_tier[TierKind.DISK])
            if victim == "stalled writer":
                await self._stall(clients["writer"])
            kill(*_struck(victim, node, clients))
            await self._live_for(self._rng.uniform(0, 0.1))
            self._stop(clients)
            if "node" not in victim:
                await self._check_freed()
        if "node" in victim:
            with node_process(self._config):
                await self._check_warm(durable)
        return Outcome(self._seed, victim, len(durable), self._num_orphaned, self._problems)

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
        works = {"writer": write_slowly_forever, "writer-2": put_forever, "reader": read_forever}
        seeds = {name: self._rng.randrange(1 << 30) for name in works}
        clients = {
            name: start(work, self._config.zmq_endpoint, seeds[name])
            for name, work in works.items()
        }
        try:
            yield clients
        finally:
            kill(*clients.values())

    def _stop(self, clients: dict[str, ForkServerProcess]) -> None:
        """End the clients, and see whether any of them had met wrong bytes."""
        kill(*clients.values())
        self._problems += [
            f"{name} read wrong bytes"
            for name, process in clients.items()
            if process.exitcode == WRONG_BYTES
        ]

    async def _stall(self, writer: ForkServerProcess) -> None:
        """Whatever it had reserved, others write, and fill the tier with; then it goes on."""
        stall(writer)
        async with await connect(self._config.zmq_endpoint) as client:
            for part in _parts(all_keys()):
                await self._check_writable(client, part)
            self._num_orphaned = (await client.statistics()).orphaned_blocks
        go_on(writer)
        await self._live_for(self._rng.uniform(0, 0.05))

    async def _check_writable(self, client: Client, keys: BlockKeys) -> None:
        left = len(keys)
        with suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_S):
                while left:
                    with suppress(ReservationExpiredError):  # this process had to wait its turn
                        left = len(keys) - len(await client.put(keys, contents(keys)))
        if left:
            self._problems.append(f"{left} blocks cannot be written while a writer is stalled")

    async def _check_freed(self) -> None:
        async with await connect(self._config.zmq_endpoint) as client:
            left: list[str] = []
            with suppress(TimeoutError):
                async with asyncio.timeout(SETTLE_S):
                    while left := await _left_behind(client):  # noqa: ASYNC110 - the node's state
                        await asyncio.sleep(0.02)
            self._problems += left
            await self._check_bytes(client)

    async def _check_warm(self, durable: set[BlockKey]) -> None:
        async with await connect(self._config.zmq_endpoint) as client:
            misses = await self._check_bytes(client)
            self._problems += [
                f"a durable block is gone: {reason.name}"
                for key, reason in misses.items()
                if key in durable
            ]

    async def _check_bytes(self, client: Client) -> dict[BlockKey, MissReason]:
        misses: dict[BlockKey, MissReason] = {}
        for part in _parts(all_keys()):
            into = [bytearray(BLOCK_BYTES) for _ in part.hashes]
            missed = await _get(client, part, into)
            for i, (key, block) in enumerate(zip(part, into, strict=True)):
                if i in missed:
                    misses[key] = missed[i]
                elif block != content(key.hash):
                    self._problems.append(f"block {key.hash.hex()[:8]} has wrong bytes")
        return misses


def _struck(
    victim: str, node: ForkServerProcess, clients: dict[str, ForkServerProcess]
) -> list[ForkServerProcess]:
    struck = [process for name, process in clients.items() if name in victim.split()]
    return [*struck, node] if "node" in victim else struck


async def _get(client: Client, keys: BlockKeys, into: Sequence[bytearray]) -> dict[int, MissReason]:
    """Memory that was released, but not heard of yet, makes no block a lost one; nor does a lease
    that ended while this process had to wait its turn."""
    missed: dict[int, MissReason] = {}
    with suppress(TimeoutError):
        async with asyncio.timeout(SETTLE_S):
            while True:
                missed = await client.get(keys, into, deadline_s=SETTLE_S)
                if not {MissReason.NO_SPACE, MissReason.LATE}.intersection(missed.values()):
                    break
    return missed


def _parts(keys: BlockKeys) -> Iterator[BlockKeys]:
    return (keys[i : i + _PART_KEYS] for i in range(0, len(keys), _PART_KEYS))


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

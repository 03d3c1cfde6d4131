"""The conductor is killed under load: no request fails, and the next one knows the truth."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import sys
from collections.abc import Iterable
from contextlib import AsyncExitStack
from pathlib import Path

import openai

from cluster.gateway.app import Gateway
from cluster.gateway.config import GatewayConfig
from cluster.membership.client import ConductorClient
from cluster.membership.registrar import Registrar
from cluster.wire.v1 import conductor_pb2 as pb
from kvstore.core.errors import UnavailableError
from kvstore.core.ids import BlockHash, BlockKeys, LayoutFingerprint
from kvstore.events.publisher import EventPublisher
from kvstore.tiers.base import TierKind

KVSTORE = str(Path(sys.executable).with_name("kvstore"))
BLOCKS = 200
BLOCK_TOKENS = 4


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ConductorProcess:
    """`kvstore conductor` with a snapshot every 0.1 s."""

    def __init__(self, folder: Path) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self._folder = folder
        self._process: asyncio.subprocess.Process

    async def start(self) -> None:
        settings = (f"snapshot={self._folder}/snapshot", "snapshot_every_ms=100")
        assignments = [word for s in settings for word in ("--set", f"conductor.{s}")]
        kept = {k: v for k, v in os.environ.items() if not k.startswith("KVSTORE_")}
        self._process = await asyncio.create_subprocess_exec(
            *(KVSTORE, "conductor", "--listen", self.address, *assignments),
            cwd=self._folder,
            env=kept,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert self._process.stdout is not None
        assert b"ready" in await self._process.stdout.readline()

    async def kill(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.communicate()


class Inventory:
    """Blocks of a decode worker's device tier, which come and go in whole prefixes."""

    def __init__(self, member_id: str, seed: int) -> None:
        self._rng = random.Random(seed)
        self.hashes = [BlockHash(self._rng.randbytes(32)) for _ in range(BLOCKS)]
        self.held = 0
        self.publisher = EventPublisher(
            member_id, 1, "tcp://127.0.0.1:0", "tcp://127.0.0.1:0", self.all
        )

    def all(self) -> list[tuple[TierKind, BlockKeys]]:
        return [(TierKind.DEVICE, self._keys(0, self.held))]

    def change(self) -> None:
        before, self.held = self.held, self._rng.randrange(BLOCKS + 1)
        if self.held > before:
            self.publisher.stored(TierKind.DEVICE, self._keys(before, self.held))
        else:
            self.publisher.removed(TierKind.DEVICE, self._keys(self.held, before))

    def request(self, request_id: str) -> pb.RouteRequest:
        keys = b"".join(block_hash[:8] for block_hash in self.hashes)
        tokens = BLOCKS * BLOCK_TOKENS + 1
        return pb.RouteRequest(
            request_id=request_id, model="tiny", routing_keys=keys, prompt_tokens=tokens
        )

    def _keys(self, start: int, end: int) -> BlockKeys:
        return BlockKeys(LayoutFingerprint(b"f" * 16), self.hashes[start:end])


async def join(
    stack: AsyncExitStack, conductor: str, member: pb.Member, inventory: Inventory | None
) -> None:
    member = pb.Member.FromString(member.SerializeToString())
    if inventory is not None:
        await inventory.publisher.start()
        stack.push_async_callback(inventory.publisher.stop)
        member.event_endpoint = inventory.publisher.event_endpoint
        member.replay_endpoint = inventory.publisher.replay_endpoint
    registrar = Registrar(conductor, member, 1, pb.Load, heartbeat_s=0.1)
    await registrar.start()
    stack.push_async_callback(registrar.stop)


async def known(client: ConductorClient, inventories: dict[str, Inventory]) -> dict[str, int]:
    """Length of the prefix that the conductor believes each worker has of its own prompt."""
    found = {}
    for name, inventory in inventories.items():
        await client.route(inventory.request(f"probe-{name}"))
        told = await client.explain(f"probe-{name}")
        await client.complete(pb.CompleteRequest(request_id=f"probe-{name}"))
        (own,) = (c for c in told.alone if c.member_id == name)
        found[name] = own.device_tokens // BLOCK_TOKENS
    return found


class Load:
    """Asks one request after another, while blocks come and go."""

    def __init__(self, client: openai.AsyncOpenAI, inventories: Iterable[Inventory]) -> None:
        self._client = client
        self._inventories = list(inventories)
        self._answered = asyncio.Semaphore(0)
        self._over = False

    async def ask(self) -> None:
        while not self._over:
            answer = await self._client.completions.create(model="tiny", prompt="fox")
            assert answer.choices[0].text == "the lazy dog"
            self._answered.release()
            await asyncio.sleep(0.01)

    async def churn(self) -> None:
        while not self._over:
            for inventory in self._inventories:
                inventory.change()
            await asyncio.sleep(0.005)

    async def answered(self, more: int) -> None:
        for _ in range(more):
            await self._answered.acquire()

    def end(self) -> None:
        self._over = True


async def gateway_client(stack: AsyncExitStack, conductor: str) -> openai.AsyncOpenAI:
    gateway = Gateway(GatewayConfig(port=0, conductor=conductor), drain_s=0)
    await gateway.start()
    stack.push_async_callback(gateway.stop)
    client = openai.AsyncOpenAI(
        base_url=f"{gateway.base_url}/v1", api_key="none", max_retries=0, timeout=30
    )
    stack.push_async_callback(client.close)
    return client


async def killed_twice(conductor: ConductorProcess, load: Load) -> None:
    """Returns with a new conductor. Raises the error of the first request that failed."""
    async with asyncio.TaskGroup() as group:
        for work in (load.ask, load.ask, load.ask, load.churn):
            group.create_task(work())
        await load.answered(20)
        for _ in range(2):
            await conductor.kill()
            await load.answered(20)
            await conductor.start()
            await load.answered(20)
        load.end()


async def test_killed_under_load(cluster, tmp_path: Path) -> None:
    conductor = ConductorProcess(tmp_path)
    inventories = {name: Inventory(name, n) for n, name in enumerate(("decode-0", "decode-1"))}
    async with AsyncExitStack() as stack:
        stack.push_async_callback(conductor.kill)
        await conductor.start()
        for member in cluster.conductor.members:
            await join(stack, conductor.address, member, inventories.get(member.member_id))
        client = await gateway_client(stack, conductor.address)
        await killed_twice(conductor, Load(client, inventories.values()))

        truth = {name: inventory.held for name, inventory in inventories.items()}
        async with ConductorClient(conductor.address) as asked, asyncio.timeout(20):
            found: dict[str, int] = {}
            while found != truth:
                with contextlib.suppress(UnavailableError):  # not connected again yet
                    found = await known(asked, inventories)

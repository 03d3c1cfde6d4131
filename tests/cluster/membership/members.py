"""Members that the tests play."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from cluster.membership.registrar import Registrar
from cluster.membership.server import ConductorServer
from cluster.wire.v1 import conductor_pb2 as pb
from kvstore.core.ids import BlockHash, BlockKeys, LayoutFingerprint
from kvstore.events.publisher import EventPublisher
from kvstore.tiers.base import TierKind
from kvstore.wire.v1 import block_pb2

FINGERPRINT = LayoutFingerprint(b"f" * 16)
BLOCK_TOKENS = 16
KEYS = BlockKeys(FINGERPRINT, [BlockHash(bytes([i]) * 32) for i in range(1, 11)])


async def until(condition: Callable[[], bool] | Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while True:
            answer = condition()
            if await answer if isinstance(answer, Awaitable) else answer:
                return
            await asyncio.sleep(0.01)


def model(root: bytes = b"r" * 32, *, name: str = "tiny", dtype: str = "float32") -> pb.ModelInfo:
    layout = block_pb2.KVLayout(
        num_layers=2, num_kv_heads=2, head_dim=8, block_size_tokens=BLOCK_TOKENS, dtype=dtype
    )
    return pb.ModelInfo(
        name=name, identity_root=root, layout=layout, max_context_tokens=4096, path="/models/tiny"
    )


def worker(
    member_id: str, role: pb.Role, *, node_id: str = "node-a", served: pb.ModelInfo | None = None
) -> pb.Member:
    return pb.Member(
        member_id=member_id,
        role=role,
        grpc_address=f"{member_id}:1",
        node_id=node_id,
        model=served or model(),
    )


class FakeMember:
    """A publisher whose inventory the test sets, and the registrar that announces it."""

    def __init__(self, member: pb.Member, epoch: int, held: dict[TierKind, BlockKeys]) -> None:
        self.member = member
        self.epoch = epoch
        self.held = held
        self.publisher = EventPublisher(
            member.member_id,
            epoch,
            "tcp://127.0.0.1:0",
            "tcp://127.0.0.1:0",
            lambda: list(self.held.items()),
        )
        self.load = pb.Load(total_blocks=100, free_blocks=100)

    async def start(self, conductor: str) -> None:
        await self.publisher.start()
        self.member.event_endpoint = self.publisher.event_endpoint
        self.member.replay_endpoint = self.publisher.replay_endpoint
        self.registrar = Registrar(
            conductor, self.member, self.epoch, lambda: self.load, heartbeat_s=0.05
        )
        await self.registrar.start()

    async def kill(self) -> None:
        """Fall silent without a word."""
        assert self.registrar._task is not None
        self.registrar._task.cancel()
        await asyncio.wait([self.registrar._task])
        await self.registrar._client.close()
        await self.publisher.stop()

    async def stop(self) -> None:
        await self.registrar.stop()
        await self.publisher.stop()


def request(request_id: str = "r1", *, blocks: int = 10, **fields: object) -> pb.RouteRequest:
    keys = b"".join(h[:8] for h in KEYS.hashes[:blocks])
    defaults: dict[str, object] = {
        "model": "tiny",
        "routing_keys": keys,
        "prompt_tokens": blocks * BLOCK_TOKENS + 5,
        "max_tokens": 8,
    }
    return pb.RouteRequest(request_id=request_id, **(defaults | fields))  # type: ignore[arg-type]


async def start(stack: AsyncExitStack, server: ConductorServer, member: FakeMember) -> None:
    await member.start(server.address)
    stack.push_async_callback(member.stop)

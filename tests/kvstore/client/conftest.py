"""Real nodes, and clients over every way to reach them."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import pytest

from kvstore.client import connection
from kvstore.client.aio import Client
from kvstore.core.ids import BlockHash, BlockKeys, LayoutFingerprint
from kvstore.node.config import NodeConfig
from kvstore.node.daemon import Node
from kvstore.transports.inproc import InprocChannel, InprocServer
from kvstore.transports.process import this_process


def make_keys(*names: object) -> BlockKeys:
    hashes = [BlockHash(hashlib.sha256(str(name).encode()).digest()) for name in names]
    return BlockKeys(LayoutFingerprint(b"test layout 0123"), hashes)


def contents(keys: BlockKeys, length: int) -> list[memoryview]:
    return [memoryview((h * (length // 32 + 1))[:length]) for h in keys.hashes]


def buffers(count: int, length: int) -> list[memoryview]:
    return [memoryview(bytearray(length)) for _ in range(count)]


async def until(condition, what: str):
    """Wait for what some other process, thread or task does."""
    async with asyncio.timeout(20):
        while not await condition():  # noqa: ASYNC110 - it happens in another process
            await asyncio.sleep(0.02)
    assert what


@pytest.fixture
async def make_node(tmp_path):
    async with AsyncExitStack() as stack:

        async def make(**values):
            arena = tmp_path / "arena"
            arena.mkdir(exist_ok=True)
            node = Node(NodeConfig(**{"host": 16 << 20, "arena_folder": arena} | values))
            await node.start()
            stack.push_async_callback(node.stop)
            return node

        yield make


WAYS = ["zmq", "grpc", "inproc", "zmq from elsewhere", "grpc from elsewhere"]
MAPPED = WAYS[:3]


@pytest.fixture
def connect(monkeypatch):
    """`async with connect(node, way) as client`; from "elsewhere" the arena cannot be mapped."""

    @asynccontextmanager
    async def connect(node, way="zmq", **settings):
        if "elsewhere" in way:
            stranger = replace(this_process(), start_ticks=1)
            monkeypatch.setattr(connection, "this_process", lambda: stranger)
        if way == "inproc":
            server = InprocServer(node.store.service.handlers())
            await server.start()
            client = await Client.over(InprocChannel(server), server.endpoint, **settings)
        else:
            grpc = f"grpc://{node.grpc_address}"
            endpoint = grpc if way.startswith("grpc") else node.zmq_endpoint
            client = await Client.connect(endpoint, **settings)
        async with client:
            yield client

    return connect

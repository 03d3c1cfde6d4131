"""Nodes that find each other as their settings say, with nothing faked."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import AsyncExitStack, asynccontextmanager

from kvstore.client.aio import Client
from kvstore.client.describe import describe
from kvstore.node.config import NodeConfig
from kvstore.node.daemon import Node
from kvstore.testing.node_process import node_process
from kvstore.tiers.base import MissReason, TierKind

from .cluster import put, read, until
from .conftest import content, make_keys

HOST, REMOTE = TierKind.HOST, TierKind.REMOTE
KEYS = make_keys(*range(8))


@asynccontextmanager
async def running(tmp_path):
    """`await start(node_id, **settings)` → (node, client)."""
    nodes, clients = [], []

    async def start(node_id, **settings):
        folder = tmp_path / node_id
        folder.mkdir(exist_ok=True)
        values = {"node_id": node_id, "host": 16 << 20, "arena_folder": folder} | settings
        node = Node(NodeConfig.model_validate(values))
        await node.start()
        nodes.append(node)
        clients.append(await Client.connect(node.zmq_endpoint))
        return node, clients[-1]

    try:
        yield start
    finally:
        await asyncio.gather(*(client.close() for client in clients))
        await asyncio.gather(*(node.stop() for node in nodes))


async def knows(client, keys, count):
    async with asyncio.timeout(20):
        while len(await client.match(keys, remote=True)) != count:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_nodes_that_name_each_other_as_peers(tmp_path):
    async with running(tmp_path) as start:
        node_b, b = await start("b")
        await put(b, KEYS)
        _, a = await start("a", peers=node_b.zmq_endpoint)
        await knows(a, KEYS, 8)
        match = await a.match(KEYS, remote=True)
        assert match.tiers == [REMOTE] * 8
        assert set(match.nodes.values()) == {"b"}
        assert len(await a.match(KEYS)) == 0
        assert await read(a, KEYS) == [REMOTE] * 8
        assert (await a.match(KEYS)).tiers == [HOST] * 8
        await put(b, make_keys("later"))
        await knows(a, make_keys("later"), 1)
        assert await read(a, make_keys("later")) == [REMOTE]


async def test_a_node_tells_who_it_is(tmp_path):
    async with running(tmp_path) as start:
        node, _ = await start("a")
        for endpoint in (node.zmq_endpoint, f"grpc://{node.grpc_address}"):
            record = await describe(endpoint, 5.0)
            assert (record.node_id, record.boot_id) == ("a", node.epoch)
            assert record.event_endpoint == node.event_endpoint
            assert record.host_id


async def test_nodes_that_meet_in_a_redis_directory(tmp_path, shared_redis):
    settings = {"directory": shared_redis.url, "directory_namespace": "meet"}
    async with running(tmp_path) as start:
        _, b = await start("b", **settings)
        await put(b, KEYS)
        _, a = await start("a", **settings)
        await knows(a, KEYS, 8)
        assert await read(a, KEYS) == [REMOTE] * 8
        _, c = await start("c", **settings)
        await knows(c, KEYS, 8)
        assert await read(c, KEYS) == [REMOTE] * 8


async def test_a_peer_that_stalls_costs_one_deadline_and_is_forgotten(tmp_path, shared_redis):
    """Its connections stay up and its kernel takes what is sent. When it goes on, it is back."""
    settings = {"directory": shared_redis.url, "directory_namespace": "stall"}
    (tmp_path / "b").mkdir()
    config = NodeConfig(node_id="b", host=16 << 20, arena_folder=tmp_path / "b", **settings)
    with node_process(config) as peer:
        async with running(tmp_path) as start, await Client.connect(peer.zmq_endpoint) as b:
            await put(b, KEYS)
            node, a = await start("a", **settings)
            await knows(a, KEYS, 8)
            assert await read(a, KEYS[:2]) == [REMOTE] * 2
            peer.pause()
            assert await read(a, KEYS[2:3], deadline_s=0.3) == [MissReason.LATE]
            await until(lambda: any(p.breaker != "closed" for p in peers_of(node)))
            assert await read(a, KEYS[3:], deadline_s=10) == [MissReason.FAILED] * 5
            await until(lambda: not node._view.nodes())
            assert await read(a, KEYS) == [HOST] * 2 + [MissReason.NEVER_STORED] * 6
            peer.go_on()
            await knows(a, KEYS, 8)
            async with asyncio.timeout(20):
                while await read(a, KEYS[3:]) != [REMOTE] * 5:  # noqa: ASYNC110 - its breaker
                    await asyncio.sleep(0.1)


def peers_of(node):
    return node.store.manager.statistics().peers


async def test_tenants_pull_their_own_blocks_only(tmp_path):
    async with running(tmp_path) as start, AsyncExitStack() as stack:
        node_b, _ = await start("b")
        node_a, _ = await start("a", peers=node_b.zmq_endpoint)

        async def connect(node, tenant):
            client = await Client.connect(node.zmq_endpoint, tenant=tenant)
            return await stack.enter_async_context(client)

        red_b = await connect(node_b, "red")
        red_a, blue_a = await connect(node_a, "red"), await connect(node_a, "blue")
        await put(red_b, KEYS)
        await knows(red_a, KEYS, 8)
        assert await read(blue_a, KEYS) == [MissReason.NEVER_STORED] * 8
        assert await read(red_a, KEYS) == [REMOTE] * 8
        assert await read(blue_a, KEYS) == [MissReason.NEVER_STORED] * 8


SERVE = """
import asyncio, sys
from kvstore.node.config import NodeConfig
from kvstore.node.daemon import serve
config = NodeConfig(node_id="b", host=64 << 20, arena_folder=sys.argv[1])
asyncio.run(serve(config, lambda node: print(node.zmq_endpoint, flush=True)))
"""


async def test_a_killed_peer_is_forgotten_with_its_blocks(tmp_path):
    folder = tmp_path / "killed"
    folder.mkdir()
    child = subprocess.Popen(  # noqa: ASYNC220 - starting does not block
        [sys.executable, "-c", SERVE, folder], stdout=subprocess.PIPE, text=True
    )
    try:
        endpoint = (await asyncio.to_thread(child.stdout.readline)).strip()
        async with running(tmp_path) as start:
            node, a = await start("a", peers=endpoint)
            async with await Client.connect(endpoint) as b:
                await b.put(KEYS, [memoryview(content(h)) for h in KEYS.hashes])
            await knows(a, KEYS, 8)
            assert await read(a, KEYS[:4]) == [REMOTE] * 4
            os.kill(child.pid, signal.SIGKILL)
            await until(lambda: not node._view.nodes())
            assert await read(a, KEYS) == [HOST] * 4 + [MissReason.NEVER_STORED] * 4
            await until(lambda: not peers_of(node))
    finally:
        child.kill()
        child.communicate()

"""Several real nodes in one process, and a view of them that is never late."""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from dataclasses import replace

from kvstore.client.aio import Client
from kvstore.core.ids import BlockKeys, MemberId, NodeId
from kvstore.directory.state import DirectoryState
from kvstore.node.config import NodeConfig
from kvstore.node.daemon import Node
from kvstore.tiers.base import TierKind

from .conftest import content

WAYS = ("shm", "zmq", "grpc")


def record_for(way, record):
    """What others are told of a node, so that they come to it that way."""
    match way:
        case "shm":
            return record
        case "zmq":
            return replace(record, host_id="elsewhere")
        case _:
            return replace(record, host_id="elsewhere", zmq_endpoint="")


class SharedView:
    """A `ClusterView` over what all nodes of the test announced."""

    def __init__(self, cluster, node_id):
        self._cluster = cluster
        self._node_id = NodeId(node_id)
        self.sink = self
        self.num_located = 0

    async def start(self, own, inventory):
        self._cluster.records[own.node_id] = record_for(self._cluster.way, own)
        for tier, keys in inventory():
            self.stored(tier, keys)

    async def stop(self):
        self._cluster.records.pop(self._node_id, None)
        self._cluster.state.forget(MemberId(self._node_id))

    def nodes(self):
        return {k: r for k, r in self._cluster.records.items() if k != self._node_id}

    async def locate(self, keys, *, deadline_s):
        self.num_located += 1
        found = self._cluster.state.locate(keys)
        return [[r for r in replicas if r.publisher != self._node_id] for replicas in found]

    def stored(self, tier, keys):
        self._cluster.state.stored(MemberId(self._node_id), tier, keys)

    def removed(self, tier, keys):
        self._cluster.state.removed(MemberId(self._node_id), tier, keys)

    def cleared(self, tier):
        self._cluster.state.cleared(MemberId(self._node_id), tier)


class Cluster:
    """`start` nodes and `connect` clients to them; the end of the context stops them all."""

    def __init__(self, folder, way="shm"):
        self.way = way
        self.records = {}
        self.state = DirectoryState()
        self._folder = folder
        self._nodes = []
        self._clients = []

    async def start(self, node_id, **settings):
        folder = self._folder / f"{node_id}-{os.urandom(4).hex()}"
        folder.mkdir()
        values = {"node_id": node_id, "host": 16 << 20, "arena_folder": folder} | settings
        node = Node(NodeConfig(**values), view=SharedView(self, node_id))
        await node.start()
        self._nodes.append(node)
        return node

    async def connect(self, node):
        client = await Client.connect(node.zmq_endpoint)
        self._clients.append(client)
        return client

    def announce(self, node_id, keys, tier=TierKind.HOST):
        """As if that node held them."""
        self.state.stored(MemberId(node_id), tier, keys)

    async def __aenter__(self):
        return self

    async def __aexit__(self, *exc):
        await asyncio.gather(*(client.close() for client in self._clients))
        await asyncio.gather(*(node.stop() for node in self._nodes))


@asynccontextmanager
async def pair(folder, way="shm", **settings):
    """(client of a, client of b, node a, node b); the settings are a's."""
    async with Cluster(folder, way) as cluster:
        a = await cluster.start("a", **settings)
        b = await cluster.start("b")
        yield cluster, await cluster.connect(a), await cluster.connect(b), a, b


async def put(client, keys: BlockKeys, length=64 << 10):
    stored = await client.put(keys, [memoryview(content(h, length)) for h in keys.hashes])
    assert len(stored) == len(keys)


async def read(client, keys: BlockKeys, length=64 << 10, deadline_s=5.0):
    """Checks every byte that comes; returns tier or reason of each key."""
    async with await client.acquire(keys, deadline_s=deadline_s) as lease:
        ends = dict(lease.misses)
        for block in lease.found:
            into = memoryview(bytearray(length))
            lease.copy_into(block, into)
            assert into == content(keys.hashes[block.index], length)
            ends[block.index] = block.tier
    return [ends[i] for i in range(len(keys))]


async def peer_statistics(client):
    return {peer.node_id: peer for peer in (await client.statistics()).peers}


async def until(condition):
    """Wait for what a task of a node does."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)

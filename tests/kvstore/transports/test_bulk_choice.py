"""Which way the bytes of a client go, and that it is said once for each session."""

from __future__ import annotations

import logging

import pytest

from kvstore.client import connection
from kvstore.client.aio import Client
from kvstore.core.ids import BlockHash, BlockKeys, LayoutFingerprint
from kvstore.events.null import NullEventSink
from kvstore.node.config import NodeConfig
from kvstore.node.daemon import Node

KEYS = BlockKeys(
    LayoutFingerprint(b"test layout 0123"), [BlockHash(bytes([i]) * 32) for i in (1, 2)]
)


@pytest.fixture
async def node(tmp_path):
    node = Node(NodeConfig(host=16 << 20, arena_folder=tmp_path), sink=NullEventSink())
    await node.start()
    yield node
    await node.stop()


async def way_of(caplog, endpoint, **settings):
    """The one that was logged, after a block went there and back."""
    caplog.clear()
    with caplog.at_level(logging.INFO, "kvstore.client.connection"):
        async with await Client.connect(endpoint, **settings) as client:
            block, into = b"x" * 300_000, bytearray(300_000)
            assert await client.put(KEYS[:1], [memoryview(block)]) == [0]
            assert await client.get(KEYS[:1], [memoryview(into)]) == {}
            assert into == block
    (message,) = [m for m in caplog.messages if "bytes go by" in m]
    return message.rpartition("bytes go by ")[2]


async def test_a_client_on_the_host_shares_memory_unless_it_is_told_not_to(node, caplog):
    assert await way_of(caplog, node.zmq_endpoint) == "shared memory"
    assert await way_of(caplog, node.zmq_endpoint, shared_memory=False) == "zmq"


async def test_a_client_that_came_by_grpc_stays_there(node, caplog):
    assert await way_of(caplog, f"grpc://{node.grpc_address}", shared_memory=False) == "grpc"


async def test_where_the_bulk_port_cannot_be_reached_bytes_go_by_grpc(node, caplog, monkeypatch):
    monkeypatch.setattr(connection, "PROBE_S", 0.1)
    node.store.service.bulk_port = 1  # nobody listens there
    assert await way_of(caplog, node.zmq_endpoint, shared_memory=False) == "grpc"
    node.store.service.bulk_port = 0
    assert await way_of(caplog, node.zmq_endpoint, shared_memory=False) == "grpc"

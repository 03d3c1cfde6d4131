"""Starting and stopping a whole node."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from kvstore.client.aio import Client
from kvstore.core.errors import ConfigurationError
from kvstore.node.config import NodeConfig
from kvstore.node.daemon import Node
from kvstore.tiers.base import TierKind

from .conftest import RecordingSink, content, make_keys


def _config(tmp_path, **values):
    return NodeConfig(**{"host": 4 << 20, "arena_folder": tmp_path} | values)


async def test_a_node_serves_on_both_transports_and_leaves_nothing(tmp_path):
    node = Node(_config(tmp_path))
    await node.start()
    async with grpc.aio.insecure_channel(node.grpc_address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(
            health_pb2.HealthCheckRequest(service="kvstore.wire.v1.NodeService")
        )
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    for endpoint in (node.zmq_endpoint, f"grpc://{node.grpc_address}"):
        async with await Client.connect(endpoint) as client:
            assert (await client.statistics()).boot_id == node.epoch
    assert node.event_endpoint.startswith("tcp://127.0.0.1:")
    assert node.replay_endpoint.startswith("tcp://127.0.0.1:")
    await node.stop()
    await node.stop()
    assert list(tmp_path.iterdir()) == []


async def test_a_sink_takes_the_events(tmp_path):
    sink = RecordingSink()
    node = Node(_config(tmp_path), sink=sink)
    await node.start()
    keys = make_keys("a")
    async with await Client.connect(node.zmq_endpoint) as client:
        await client.put(keys, [memoryview(b"bytes")])
    await node.stop()
    assert sink.held[TierKind.HOST] == set(keys)
    assert node.event_endpoint == ""


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"disk": 1 << 30}, "disk_path"),
        ({"disk": 1 << 30, "disk_path": "/proc/no/such/folder"}, "/proc/no"),
        ({"host": 1 << 60}, "arena"),
        ({"arena_folder": "/proc"}, "/proc"),
        ({"low_watermark": 0.9, "high_watermark": 0.5}, "low_watermark"),
        ({"zmq_endpoint": "tcp://127.0.0.1:{taken}"}, "{taken}"),
        ({"grpc_address": "127.0.0.1:{taken}"}, "{taken}"),
        ({"event_endpoint": "tcp://127.0.0.1:{taken}"}, "{taken}"),
        ({"replay_endpoint": "tcp://127.0.0.1:{taken}"}, "{taken}"),
        ({"zmq_endpoint": "nonsense"}, "nonsense"),
    ],
)
async def test_what_cannot_be_used_is_one_clear_error_and_leaves_nothing(tmp_path, values, words):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        values = {
            name: value.replace("{taken}", port) if isinstance(value, str) else value
            for name, value in values.items()
        }
        node = Node(_config(tmp_path, **values))
        with pytest.raises(ConfigurationError, match=words.replace("{taken}", port)) as raised:
            await node.start()
        assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


SERVE = """
import asyncio, sys
from kvstore.node.config import NodeConfig
from kvstore.node.daemon import serve
config = NodeConfig(host=4 << 20, arena_folder=sys.argv[1], disk=16 << 20, disk_path=sys.argv[2])
asyncio.run(serve(config, lambda node: print(node.zmq_endpoint, flush=True)))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_stops_a_node_cleanly_with_its_blocks_on_disk(tmp_path, number):
    arena, disk = tmp_path / "arena", tmp_path / "disk"
    arena.mkdir()
    child = subprocess.Popen(  # noqa: ASYNC220 - starting does not block
        [sys.executable, "-c", SERVE, arena, disk], stdout=subprocess.PIPE, text=True
    )
    try:
        endpoint = (await asyncio.to_thread(child.stdout.readline)).strip()
        keys = make_keys(*range(8))
        async with await Client.connect(endpoint) as client:
            await client.put(keys, [memoryview(content(h)) for h in keys.hashes])
        os.kill(child.pid, number)
        assert await asyncio.to_thread(child.wait, 20) == 0
    finally:
        child.kill()
        child.communicate()
    assert list(arena.iterdir()) == []
    node = Node(_config(arena, disk=16 << 20, disk_path=disk))
    await node.start()
    async with await Client.connect(node.zmq_endpoint) as client:
        assert (await client.match(keys)).tiers == [TierKind.DISK] * 8
    await node.stop()

"""A whole node that asks who comes, with the files that its settings name."""

from __future__ import annotations

import asyncio
import os
import stat

import pytest

from kvstore.client.aio import Client
from kvstore.core.errors import (
    ConfigurationError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from kvstore.node.config import NodeConfig
from kvstore.node.daemon import Node
from kvstore.testing.certificates import CredentialFiles
from kvstore.transports.security.config import ServerSecurity
from kvstore.wire.v1 import block_pb2, node_pb2

from .conftest import content, make_keys

CLIENTS = {
    "team-a": "roles = ['client']\ntenant = 'team-a'",
    "team-b": "roles = ['client']\ntenant = 'team-b'",
    "node-2": "roles = ['peer']",
}


@pytest.fixture
def files(tmp_path):
    (tmp_path / "keys").mkdir()
    return CredentialFiles(tmp_path / "keys", CLIENTS)


@pytest.fixture
async def node(tmp_path, files):
    (tmp_path / "arena").mkdir()
    config = NodeConfig(host=4 << 20, arena_folder=tmp_path / "arena", security=files.server)
    node = Node(config)
    await node.start()
    yield node
    await node.stop()


def endpoint_of(node, scheme):
    return node.zmq_endpoint if scheme == "zmq" else f"grpc://{node.grpc_address}"


@pytest.mark.parametrize("shared_memory", [True, False])
@pytest.mark.parametrize("scheme", ["zmq", "grpc"])
async def test_bytes_pass_for_those_who_may_and_stay_with_their_tenant(
    node, files, scheme, shared_memory
):
    keys = make_keys("x", "y")
    connect = {"shared_memory": shared_memory}
    endpoint = endpoint_of(node, scheme)
    a_security, b_security = (files.client(name) for name in ("team-a", "team-b"))
    async with (
        await Client.connect(endpoint, security=a_security, **connect) as a,
        await Client.connect(endpoint, security=b_security, **connect) as b,
    ):
        await a.put(keys, [memoryview(content(key)) for key in keys.hashes], deadline_s=20)
        into = [bytearray(len(content(key))) for key in keys.hashes]
        assert await a.get(keys, into, deadline_s=20) == {}
        assert [bytes(block) for block in into] == [content(key) for key in keys.hashes]
        assert len((await a.match(keys, deadline_s=20)).tiers) == 2
        assert len((await b.match(keys, deadline_s=20)).tiers) == 0, "another tenant's are not seen"


async def test_a_peer_finds_and_pulls_blocks_under_curve(node, tmp_path, files):
    keys = make_keys("x", "y")
    team_a = files.client("team-a")
    (tmp_path / "arena-2").mkdir()
    second = Node(
        NodeConfig(
            node_id="node-2",
            host=4 << 20,
            arena_folder=tmp_path / "arena-2",
            peers=node.zmq_endpoint,
            security=node.config.security,
            credentials=files.client("node-2"),
        )
    )
    await second.start()
    try:
        async with (
            await Client.connect(node.zmq_endpoint, security=team_a) as near,
            await Client.connect(second.zmq_endpoint, security=team_a) as far,
        ):
            blocks = [memoryview(content(key)) for key in keys.hashes]
            await near.put(keys, blocks, deadline_s=20)
            for _ in range(400):
                if len((await far.match(keys, remote=True, deadline_s=20)).tiers) == 2:
                    break
                await asyncio.sleep(0.05)
            into = [bytearray(block.nbytes) for block in blocks]
            assert await far.get(keys, into, deadline_s=20) == {}
            assert into == blocks
    finally:
        await second.stop()


@pytest.mark.parametrize("scheme", ["zmq", "grpc"])
async def test_a_session_for_another_tenant_is_refused(node, files, scheme):
    with pytest.raises(PermissionDeniedError, match="belongs to tenant 'team-a'"):
        await Client.connect(
            endpoint_of(node, scheme), tenant="team-b", security=files.client("team-a")
        )


@pytest.mark.parametrize("scheme", ["zmq", "grpc"])
async def test_without_a_session_a_tenant_cannot_ask_for_the_default_tenants_blocks(
    node, files, scheme
):
    match = node_pb2.MatchRequest(
        keys=block_pb2.BlockKeys(layout_fingerprint=bytes(16), block_hashes=bytes(32))
    )
    security = files.client("team-a")
    async with await Client.connect(endpoint_of(node, scheme), security=security) as client:
        with pytest.raises(PermissionDeniedError, match="open one"):
            await client._connection.channel.call(
                "Match", match, node_pb2.MatchResponse, deadline_s=20
            )


@pytest.mark.parametrize("scheme", ["zmq", "grpc"])
async def test_a_peers_credentials_open_no_clients_session(node, files, scheme):
    with pytest.raises(PermissionDeniedError, match="lacks the role 'client'"):
        await Client.connect(
            endpoint_of(node, scheme), security=files.client("node-2"), deadline_s=20
        )


@pytest.mark.parametrize("scheme", ["zmq", "grpc"])
async def test_without_credentials_nobody_gets_in(node, scheme):
    with pytest.raises(UnauthenticatedError):
        await Client.connect(endpoint_of(node, scheme), deadline_s=0.5)


async def test_what_the_settings_lack_is_told_before_anything_starts(tmp_path, files):
    for values, named in (
        ({"grpc_address": "0.0.0.0:0"}, "node.grpc_address 0.0.0.0:0: anybody on the network"),
        ({"zmq_endpoint": "tcp://*:0"}, "node.zmq_endpoint"),
        ({"bulk_endpoint": "tcp://0.0.0.0:0"}, "node.bulk_endpoint"),
        ({"event_endpoint": "tcp://0.0.0.0:0"}, "node.event_endpoint"),
        ({"replay_endpoint": "tcp://0.0.0.0:0"}, "node.replay_endpoint"),
        ({"security": ServerSecurity(tls_cert=tmp_path / "no")}, "node.security.tls_cert"),
    ):
        node = Node(NodeConfig(host=4 << 20, arena_folder=tmp_path, **values))
        with pytest.raises(ConfigurationError, match=named):
            await node.start()


async def test_insecure_can_be_asked_for_and_advertises_an_address(tmp_path):
    node = Node(
        NodeConfig(
            host=4 << 20,
            arena_folder=tmp_path,
            zmq_endpoint="tcp://0.0.0.0:0",
            grpc_address="0.0.0.0:0",
            event_endpoint="tcp://0.0.0.0:0",
            advertise_host="127.0.0.1",
            allow_insecure=True,
        )
    )
    await node.start()
    try:
        for endpoint in (node.zmq_endpoint, node.grpc_address, node.event_endpoint):
            assert endpoint.removeprefix("tcp://").startswith("127.0.0.1:")
        async with await Client.connect(node.zmq_endpoint) as client:
            assert (await client.statistics()).node_id == "node-0"
    finally:
        await node.stop()


async def test_the_arena_is_for_its_owner_only(node, tmp_path):
    (arena,) = (tmp_path / "arena").iterdir()
    assert stat.S_IMODE(os.stat(arena).st_mode) == 0o600

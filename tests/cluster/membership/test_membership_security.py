"""A conductor that asks who comes: members must be peers, and their events stay among peers."""

from __future__ import annotations

import asyncio

import pytest

from cluster.conductor.config import ConductorConfig
from cluster.membership.client import ConductorClient
from cluster.membership.registrar import Registrar
from cluster.membership.server import ConductorServer
from cluster.wire.v1 import conductor_pb2 as pb
from kvstore.core.errors import ConfigurationError, PermissionDeniedError, UnauthenticatedError
from kvstore.core.ids import BlockHash, BlockKeys, LayoutFingerprint
from kvstore.events.publisher import EventPublisher
from kvstore.testing.certificates import CredentialFiles
from kvstore.tiers.base import TierKind
from kvstore.transports.security.curve import Admit
from kvstore.transports.security.keys import load_client_keys, load_server_keys

ANY = "tcp://127.0.0.1:0"
KEYS = BlockKeys(LayoutFingerprint(b"l" * 16), [BlockHash(bytes(32))])


@pytest.fixture
def files(tmp_path):
    entries = {"member": "roles = ['peer']", "user": "roles = ['client']\ntenant = ''"}
    return CredentialFiles(tmp_path, entries)


@pytest.fixture
async def server(files):
    config = ConductorConfig(security=files.server, credentials=files.client("member"))
    server = ConductorServer(config)
    await server.start()
    yield server
    await server.stop()


def member(publisher: EventPublisher) -> pb.Member:
    return pb.Member(
        member_id="node-0",
        role=pb.ROLE_NODE,
        grpc_address="127.0.0.1:1",
        event_endpoint=publisher.event_endpoint,
        replay_endpoint=publisher.replay_endpoint,
        node_id="node-0",
    )


async def test_a_peer_registers_and_its_events_reach_the_conductor(server, files):
    publisher = EventPublisher(
        "node-0",
        1,
        ANY,
        ANY,
        lambda: [(TierKind.HOST, KEYS)],
        secure=load_server_keys(files.server).secure(Admit.PEERS),
    )
    await publisher.start()
    keys = load_client_keys(files.client("member"))
    registrar = Registrar(server.address, member(publisher), 1, pb.Load, keys=keys)
    await registrar.start()
    try:
        assert registrar.registered
        for _ in range(400):
            if publisher.statistics().snapshots:
                break
            await asyncio.sleep(0.05)
        assert publisher.statistics().snapshots == 1, "taken by the conductor, under CURVE"
    finally:
        await registrar.stop()
        await publisher.stop()


async def test_a_client_may_look_but_not_register(server, files):
    async with ConductorClient(
        server.address, keys=load_client_keys(files.client("user"))
    ) as client:
        assert await client.list_members() == []
        for call in (
            client.register(pb.Member(member_id="x"), 1),
            client.heartbeat("x", 1, pb.Load()),
            client.drain("x"),
        ):
            with pytest.raises(PermissionDeniedError, match="lacks the role 'peer'"):
                await call


async def test_tls_without_a_token_is_not_enough(server, files):
    config = files.client("user").model_copy(update={"token_file": None})
    async with ConductorClient(server.address, keys=load_client_keys(config)) as client:
        with pytest.raises(UnauthenticatedError, match="asks for a token"):
            await client.list_members()


async def test_beyond_this_host_it_does_not_start_open():
    server = ConductorServer(ConductorConfig(grpc_address="0.0.0.0:0"))
    with pytest.raises(ConfigurationError, match=r"conductor\.grpc_address .*anybody on"):
        await server.start()
    allowed = ConductorServer(ConductorConfig(grpc_address="0.0.0.0:0", allow_insecure=True))
    await allowed.start()
    await allowed.stop()

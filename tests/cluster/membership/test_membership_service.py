"""The conductor's service, its clients and members over real gRPC and ZeroMQ."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest
import zmq
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from cluster.conductor.config import ConductorConfig
from cluster.membership.client import ConductorClient
from cluster.membership.registrar import Registrar
from cluster.membership.server import ConductorServer
from cluster.wire.v1 import conductor_pb2 as pb
from kvstore.core.errors import (
    ConfigurationError,
    IdentityMismatchError,
    InvalidArgumentError,
    SessionExpiredError,
    UnavailableError,
)
from kvstore.events.publisher import EventPublisher
from kvstore.tiers.base import TierKind

from .members import BLOCK_TOKENS, KEYS, FakeMember, model, request, start, until, worker


async def test_routes_to_where_the_blocks_are(
    server: ConductorServer, client: ConductorClient, stack: AsyncExitStack
) -> None:
    cold = FakeMember(worker("p-0", pb.ROLE_PREFILL, node_id="node-b"), 1, {})
    warm = FakeMember(worker("p-1", pb.ROLE_PREFILL), 1, {TierKind.DEVICE: KEYS[:4]})
    decode = FakeMember(worker("d-0", pb.ROLE_DECODE, node_id="node-c"), 1, {})
    node = pb.Member(
        member_id="node-a", role=pb.ROLE_NODE, grpc_address="node-a:1", node_id="node-a"
    )
    host = FakeMember(node, 1, {TierKind.HOST: KEYS[:9]})
    other = pb.Member(
        member_id="node-b", role=pb.ROLE_NODE, grpc_address="node-b:1", node_id="node-b"
    )
    for member in (cold, warm, decode, host, FakeMember(other, 1, {})):
        await start(stack, server, member)
    await until(lambda: server.statistics().indexed_blocks == 9)

    placed = await client.route(request())
    assert placed.prefill == warm.member
    assert placed.decode == decode.member
    first, second = sorted(placed.candidates, key=lambda candidate: candidate.member_id)
    assert (first.member_id, second.member_id) == ("p-0", "p-1")
    assert second == placed.chosen
    assert (second.device_tokens, second.host_tokens, second.disk_tokens) == (64, 80, 0)
    assert (first.device_tokens, first.host_tokens, first.remote_tokens) == (0, 0, 144)
    assert second.ttft_s == second.queue_s + second.load_s + second.prefill_s < first.ttft_s

    host.publisher.removed(TierKind.HOST, KEYS[6:9])
    await until(lambda: server.statistics().indexed_blocks == 10 - 4 + 4)  # the routed ones count
    await client.complete(pb.CompleteRequest(request_id="r1", ttft_s=0.1))
    await until(lambda: server.statistics().indexed_blocks == 6)
    assert (await client.route(request("r2"))).chosen.host_tokens == 2 * BLOCK_TOKENS
    assert server.statistics().completed == 1


async def test_members_load_and_blocks_are_listed(
    server: ConductorServer, client: ConductorClient, stack: AsyncExitStack
) -> None:
    member = FakeMember(worker("d-0", pb.ROLE_DECODE), 1, {TierKind.DEVICE: KEYS})
    member.load = pb.Load(running=3, waiting=1, waiting_tokens=70, free_blocks=9, total_blocks=12)
    await start(stack, server, member)

    async def listed() -> bool:
        (status,) = await client.list_members()
        return status.indexed_blocks == 10 and status.load == member.load

    await until(listed)
    (status,) = await client.list_members()
    assert status.member == member.member
    assert not status.draining
    await client.drain("d-0")
    (status,) = await client.list_members()
    assert status.draining
    with pytest.raises(UnavailableError, match="no decode worker for model 'tiny'"):
        await client.route(request())


async def test_silent_member_is_forgotten_with_its_blocks(
    server: ConductorServer, client: ConductorClient, stack: AsyncExitStack
) -> None:
    stays = FakeMember(worker("d-0", pb.ROLE_DECODE), 1, {TierKind.DEVICE: KEYS[:2]})
    dies = FakeMember(worker("p-0", pb.ROLE_PREFILL), 1, {TierKind.DEVICE: KEYS})
    await start(stack, server, stays)
    await dies.start(server.address)
    await until(lambda: server.statistics().indexed_blocks == 10)
    await dies.kill()
    await until(lambda: server.statistics().members == 1)
    assert server.statistics().indexed_blocks == 2
    placed = await client.route(request())
    assert not placed.HasField("prefill")
    assert placed.decode.member_id == "d-0"
    assert placed.chosen.device_tokens == 2 * BLOCK_TOKENS


async def test_restarted_member_replaces_itself(
    server: ConductorServer, client: ConductorClient, stack: AsyncExitStack
) -> None:
    before = FakeMember(worker("d-0", pb.ROLE_DECODE), 1, {TierKind.DEVICE: KEYS})
    await before.start(server.address)
    await until(lambda: server.statistics().indexed_blocks == 10)
    await before.kill()
    after = FakeMember(worker("d-0", pb.ROLE_DECODE), 2, {TierKind.DEVICE: KEYS[:3]})
    await start(stack, server, after)
    await until(lambda: server.statistics().indexed_blocks == 3)
    assert server.statistics().members == 1
    with pytest.raises(SessionExpiredError):
        await client.heartbeat("d-0", 1, pb.Load())
    with pytest.raises(InvalidArgumentError, match="older"):
        await client.register(before.member, 1)


async def test_restarted_conductor_learns_all_again(stack: AsyncExitStack, tmp_path: Path) -> None:
    config = ConductorConfig(grpc_address=f"unix:{tmp_path}/conductor")
    first = ConductorServer(config)
    await first.start()
    member = FakeMember(worker("d-0", pb.ROLE_DECODE), 1, {TierKind.DEVICE: KEYS})
    await start(stack, first, member)
    await until(lambda: first.statistics().indexed_blocks == 10)
    await first.stop()
    client = await stack.enter_async_context(ConductorClient(first.address, deadline_s=0.5))
    with pytest.raises(UnavailableError):
        await client.route(request())

    second = ConductorServer(config)
    await second.start()
    stack.push_async_callback(second.stop)
    await until(lambda: second.statistics().indexed_blocks == 10)

    async def routes() -> bool:
        try:
            return (await client.route(request())).chosen.device_tokens == 160
        except UnavailableError:  # the channel has not tried again yet
            return False

    await until(routes)


async def test_member_starts_before_the_conductor(stack: AsyncExitStack, tmp_path: Path) -> None:
    config = ConductorConfig(grpc_address=f"unix:{tmp_path}/conductor")
    member = FakeMember(worker("d-0", pb.ROLE_DECODE), 1, {TierKind.DEVICE: KEYS})
    await member.start(config.grpc_address)
    stack.push_async_callback(member.stop)
    assert not member.registrar.registered
    server = ConductorServer(config)
    await server.start()
    stack.push_async_callback(server.stop)
    await until(lambda: server.statistics().indexed_blocks == 10)
    assert member.registrar.registered


@pytest.mark.parametrize("other", [model(b"x" * 32), model(dtype="bfloat16")])
async def test_other_identity_is_refused_at_start(
    server: ConductorServer, stack: AsyncExitStack, other: pb.ModelInfo
) -> None:
    await start(stack, server, FakeMember(worker("d-0", pb.ROLE_DECODE), 1, {}))
    stranger = Registrar(
        server.address, worker("d-1", pb.ROLE_DECODE, served=other), 1, lambda: pb.Load()
    )
    with pytest.raises(IdentityMismatchError, match="d-1"):
        await stranger.start()
    assert server.statistics().members == 1


async def test_who_is_missing_is_said(server: ConductorServer, client: ConductorClient) -> None:
    with pytest.raises(UnavailableError, match="no decode worker"):
        await client.route(request())
    await client.register(worker("p-0", pb.ROLE_PREFILL), 1)
    with pytest.raises(UnavailableError, match="no decode worker for model 'tiny'"):
        await client.route(request())
    with pytest.raises(InvalidArgumentError, match="served are: tiny"):
        await client.route(request(model="huge"))


def bad_member(**fields: object) -> pb.Member:
    member = worker("d-9", pb.ROLE_DECODE)
    for name, value in fields.items():
        setattr(member, name, value)
    return member


@pytest.mark.parametrize(
    ("member", "says"),
    [
        (bad_member(member_id=""), "member_id"),
        (bad_member(role=0), "role"),
        (bad_member(role=9), "role"),
        (bad_member(grpc_address=""), "grpc_address"),
        (bad_member(event_endpoint="tcp://127.0.0.1:1"), "replay_endpoint"),
        (bad_member(event_endpoint="nonsense", replay_endpoint="tcp://127.0.0.1:1"), "nonsense"),
        (worker("d-9", pb.ROLE_DECODE, served=model(b"short")), "identity_root"),
        (worker("d-9", pb.ROLE_DECODE, served=model(dtype="int3")), "dtype"),
        (worker("d-9", pb.ROLE_DECODE, served=model(name="")), "model.name"),
        (pb.Member(member_id="n", role=pb.ROLE_NODE, grpc_address="a:1"), "node_id"),
        (pb.Member(member_id="d", role=pb.ROLE_DECODE, grpc_address="a:1"), "model"),
    ],
)
async def test_malformed_members_are_refused(
    server: ConductorServer, client: ConductorClient, member: pb.Member, says: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=says):
        await client.register(member, 1)
    assert server.statistics().members == 0


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"routing_keys": b"123"}, "routing_keys"),
        ({"prompt_tokens": 0, "routing_keys": b""}, "prompt_tokens"),
        ({"prompt_tokens": 17}, "1 full blocks"),
        ({"request_id": ""}, "request_id"),
    ],
)
async def test_malformed_requests_are_refused(
    client: ConductorClient, fields: dict[str, object], says: str
) -> None:
    await client.register(worker("d-0", pb.ROLE_DECODE), 1)
    bad = request()
    for name, value in fields.items():
        setattr(bad, name, value)
    with pytest.raises(InvalidArgumentError, match=says):
        await client.route(bad)


async def test_malformed_outcomes_are_refused(client: ConductorClient) -> None:
    for bad in (float("nan"), float("inf"), -1.0):
        with pytest.raises(InvalidArgumentError, match="ttft_s"):
            await client.complete(pb.CompleteRequest(request_id="r", ttft_s=bad))
    await client.complete(pb.CompleteRequest(request_id="never routed"))


async def test_refused_member_of_known_id_can_correct_itself(client: ConductorClient) -> None:
    member = bad_member(event_endpoint="nonsense", replay_endpoint="tcp://127.0.0.1:1")
    with pytest.raises(InvalidArgumentError):
        await client.register(member, 5)
    assert await client.register(worker("d-9", pb.ROLE_DECODE), 4) == 2


async def test_taken_address_is_a_configuration_error(server: ConductorServer) -> None:
    for address in (server.address, "no-port", "256.0.0.1:1"):
        second = ConductorServer(ConductorConfig(grpc_address=address))
        with pytest.raises(ConfigurationError, match=r"cannot listen on"):
            await second.start()


async def test_health_and_reflection(server: ConductorServer) -> None:
    async with grpc.aio.insecure_channel(server.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        name = "cluster.wire.v1.ConductorService"
        answer = await health.Check(health_pb2.HealthCheckRequest(service=name), timeout=5)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        ask = reflection_pb2.ServerReflectionRequest(list_services="")
        call = stub.ServerReflectionInfo(iter([ask]), timeout=5)
        listed = [s.name async for r in call for s in r.list_services_response.service]
        assert name in listed


async def test_events_under_another_id_are_not_believed(
    server: ConductorServer, client: ConductorClient, caplog: pytest.LogCaptureFixture
) -> None:
    publisher = EventPublisher("somebody", 1, "tcp://127.0.0.1:0", "tcp://127.0.0.1:0", list)
    await publisher.start()
    member = worker("d-0", pb.ROLE_DECODE)
    member.event_endpoint = publisher.event_endpoint
    member.replay_endpoint = publisher.replay_endpoint
    await client.register(member, 1)
    publisher.stored(TierKind.DEVICE, KEYS)
    await until(lambda: "publishes for 'somebody'" in caplog.text)
    assert server.statistics().indexed_blocks == 0
    await publisher.stop()


async def test_a_stranger_on_the_event_sockets_harms_nobody(
    server: ConductorServer, stack: AsyncExitStack
) -> None:
    member = FakeMember(worker("d-0", pb.ROLE_DECODE), 1, {TierKind.DEVICE: KEYS})
    await start(stack, server, member)
    with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
        stranger.setsockopt(zmq.LINGER, 0)
        stranger.connect(member.publisher.replay_endpoint)
        stranger.send(b"\xff\xff\xff")
        stranger.send_multipart([b"", b"two frames"])
        await until(lambda: member.publisher.statistics().malformed_requests == 2)
    await until(lambda: server.statistics().indexed_blocks == 10)


async def test_a_member_that_cannot_serve_any_more_gets_nothing(
    server: ConductorServer, client: ConductorClient, stack: AsyncExitStack
) -> None:
    alive = [True]
    dying = Registrar(
        server.address,
        worker("d-0", pb.ROLE_DECODE),
        1,
        lambda: pb.Load(),
        heartbeat_s=0.01,
        alive=lambda: alive[0],
    )
    await dying.start()
    stack.push_async_callback(dying.stop)
    assert (await client.route(request())).decode.member_id == "d-0"
    alive[0] = False

    async def drained() -> bool:
        return all(status.draining for status in await client.list_members())

    await until(drained)
    with pytest.raises(UnavailableError, match="no decode worker"):
        await client.route(request())
    await until(lambda: server.statistics().members == 0)  # it does not come back

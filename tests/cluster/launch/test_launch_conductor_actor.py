"""The conductor under a real Ray: found by name, started again by Ray, warm."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import ray

from cluster.conductor.config import ConductorConfig
from cluster.launch.conductor_actor import create_conductor
from cluster.launch.conductor_part import ConductorPart
from cluster.launch.ray_conductor import RayConductor
from cluster.launch.ray_instance import RayInstance
from cluster.membership.client import ConductorClient
from cluster.membership.registrar import Registrar
from cluster.membership.snapshot import read_snapshot
from cluster.wire.v1 import conductor_pb2 as pb
from kvstore.core.errors import (
    DeadlineExceededError,
    KVStoreError,
    NotFoundError,
    OverloadedError,
    UnavailableError,
)
from kvstore.wire.v1 import block_pb2

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture
async def instance() -> AsyncIterator[RayInstance]:
    started = RayInstance(None)
    started.start()
    yield started
    await started.stop()


def worker(name: str) -> pb.Member:
    layout = block_pb2.KVLayout(
        num_layers=2, num_kv_heads=2, head_dim=8, block_size_tokens=16, dtype="float32"
    )
    model = pb.ModelInfo(
        name="tiny", identity_root=b"r" * 32, layout=layout, max_context_tokens=4096
    )
    return pb.Member(member_id=name, role=pb.ROLE_DECODE, grpc_address=f"{name}:1", model=model)


def request(name: str, **fields: object) -> pb.RouteRequest:
    return pb.RouteRequest(request_id=name, model="tiny", prompt_tokens=9, **fields)  # type: ignore[arg-type]


async def process_of(actor: object) -> int:
    """As Ray runs it."""
    return int(await actor.__ray_call__.remote(lambda _: os.getpid()))  # type: ignore[attr-defined]


async def says_what_it_means(verbs: RayConductor) -> None:
    reserved = await verbs.reserve(request("a"))
    assert reserved.placement.decode.member_id == "d-0"
    await verbs.release(reserved.reservation_id)
    assert (await verbs.explain("a")).decode == "d-0"
    with pytest.raises(NotFoundError, match="'b'"):
        await verbs.explain("b")
    with pytest.raises(OverloadedError, match="time to first token") as caught:
        await verbs.route(request("c", ttft_target_s=1e-6))
    assert caught.value.retry_after_s < 1
    await verbs.route(pb.RouteRequest(request_id="d", model="tiny", prompt_tokens=1 << 20))
    with pytest.raises(DeadlineExceededError):
        await verbs.route(request("e"), deadline_s=0.3)
    with pytest.raises(OverloadedError, match="waited for"):  # not: the queue is full
        await verbs.route(request("f"))


async def kept(path: Path, name: str) -> None:
    """Returns once a snapshot knows of that member."""
    async with asyncio.timeout(60):
        while True:
            await asyncio.sleep(0.05)
            with contextlib.suppress(FileNotFoundError):
                members = read_snapshot(path).state.members
                if name in {kept.member.member_id for kept in members}:
                    return


async def routed(verbs: RayConductor | ConductorClient, name: str) -> pb.RouteResponse:
    async with asyncio.timeout(60):
        while True:
            try:
                return await verbs.route(request(name))
            except (UnavailableError, DeadlineExceededError):
                await asyncio.sleep(0.05)


async def test_it_is_always_there(instance: RayInstance, tmp_path: Path) -> None:
    config = ConductorConfig(
        name="conductor-of-test",
        member_ttl_ms=120_000,
        queue_max=1,
        queue_wait_ms=500,
        queue_ahead_ms=50,
        snapshot=tmp_path / "snapshot",
        snapshot_every_ms=100,
    )
    lost = RayConductor(config.name)
    with pytest.raises(UnavailableError, match="no actor 'conductor-of-test'"):
        await lost.list_members()
    part = ConductorPart(config)
    address = (await part.start(60))["address"]
    async with RayConductor(config.name) as verbs, ConductorClient(address) as client:
        assert await verbs.register(worker("d-0"), 7) == 120
        await says_what_it_means(verbs)
        await kept(tmp_path / "snapshot", "d-0")

        actor = create_conductor(config.name, config)  # the same one
        before = await process_of(actor)
        os.kill(before, signal.SIGKILL)
        # Nobody registers again: it is the snapshot that knows the worker.
        assert (await routed(verbs, "g")).decode.member_id == "d-0"
        assert (await routed(client, "h")).decode.member_id == "d-0"
        assert await process_of(actor) != before

        registrar = Registrar(address, worker("d-1"), 1, pb.Load, heartbeat_s=0.1)
        await registrar.start()
        assert {s.member.member_id for s in await verbs.list_members()} == {"d-0", "d-1"}
        await registrar.stop()

        other = ConductorPart(config)  # another launcher: finds it, and leaves it
        assert (await other.start(60))["address"] == address
        await other.stop()
        assert (await routed(client, "i")).decode.member_id == "d-0"
    await part.stop()
    with pytest.raises(KVStoreError):
        await RayConductor(config.name, deadline_s=5).list_members()


async def test_a_start_that_fails_says_why(instance: RayInstance) -> None:
    part = ConductorPart(ConductorConfig(grpc_address="256.0.0.1:0"))
    with pytest.raises(KVStoreError, match=r"256\.0\.0\.1"):
        await part.start(60)
    await part.stop()
    assert ray.is_initialized()

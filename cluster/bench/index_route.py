"""`kvstore bench index`: how long a gateway waits for a placement, by the way that it asks."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

import numpy as np

from cluster.bench.case import BenchOptions, Case
from cluster.conductor.config import ConductorConfig
from cluster.launch.conductor_part import ConductorPart
from cluster.launch.ray_conductor import RayConductor
from cluster.launch.ray_instance import RayInstance
from cluster.membership.client import ConductorClient
from cluster.membership.server import ConductorServer
from cluster.membership.verbs import ConductorVerbs
from cluster.wire.v1 import conductor_pb2 as pb
from kvstore.core.errors import ConfigurationError
from kvstore.wire.v1 import block_pb2

GRPC, RAY, GATEWAYS = "route_grpc_p99_ms", "route_ray_p99_ms", "route_grpc_p99_ms_4_gateways"

WORKERS = 256
BLOCKS = 200
SHARED_BLOCKS = 100
BLOCK_TOKENS = 16
PROMPTS = 64
ROUTES = 2_000
WARM_UP = 300
PER_S = 50.0
"""Requests that each gateway places, in the case with several."""

_START_S = 60.0
_CONFIG = ConductorConfig(member_ttl_ms=600_000, queue_max=0, name="bench-conductor")

Measured = list[float]


def index_route(options: BenchOptions) -> Iterator[Case]:
    """256 decode workers, and prompts of 200 blocks of which the first 100 are alike."""
    note = f"{WORKERS} workers, {BLOCKS} blocks; the service is in a process of its own"
    if options.wants(GRPC, GATEWAYS):
        with _spawned_conductor() as address:
            one, four = asyncio.run(_over_grpc(address))
        yield _case(GRPC, one, note)
        several = f"{note}; 4 gateways, {PER_S:g} requests/s each"
        yield _case(GATEWAYS, four, several)
    if options.wants(RAY):
        yield _case(RAY, asyncio.run(_through_ray()), note)


def _case(name: str, seconds: Measured, note: str) -> Case:
    milliseconds = 1000 * np.array(seconds)
    p50, p99 = np.percentile(milliseconds, [50, 99]).tolist()
    return Case(name, p99, "ms", note=f"{note}; p50 {p50:.2f} ms", goal="value <= 5")


async def _over_grpc(address: str) -> tuple[Measured, Measured]:
    async with ConductorClient(address) as client:
        await _register(client)
        await _place(client, "warm", WARM_UP)
        one = await _place(client, "one", ROUTES)
    gateways = [ConductorClient(address) for _ in range(4)]
    try:
        places = (
            _place(gateway, f"g{number}", ROUTES // 4, per_s=PER_S)
            for number, gateway in enumerate(gateways)
        )
        four = await asyncio.gather(*places)
    finally:
        for gateway in gateways:
            await gateway.close()
    return one, [seconds for some in four for seconds in some]


async def _through_ray() -> Measured:
    instance, part = RayInstance(None), ConductorPart(_CONFIG)
    instance.start()
    try:
        await part.start(_START_S)
        async with RayConductor(_CONFIG.name) as conductor:
            await _register(conductor)
            await _place(conductor, "warm", WARM_UP)
            return await _place(conductor, "one", ROUTES)
    finally:
        await part.stop()
        await instance.stop()


async def _register(conductor: ConductorVerbs) -> None:
    layout = block_pb2.KVLayout(
        num_layers=32, num_kv_heads=8, head_dim=128, block_size_tokens=BLOCK_TOKENS, dtype="float16"
    )
    model = pb.ModelInfo(
        name="bench", identity_root=bytes(32), layout=layout, max_context_tokens=1 << 20
    )
    for number in range(WORKERS):
        name = f"worker-{number}"
        member = pb.Member(
            member_id=name, role=pb.ROLE_DECODE, grpc_address=f"{name}:1", model=model
        )
        await conductor.register(member, 1)


async def _place(
    conductor: ConductorVerbs, prefix: str, routes: int, *, per_s: float | None = None
) -> Measured:
    """Each request is over as soon as the third one after it is placed."""
    rng = np.random.default_rng(0)
    shared = rng.bytes(8 * SHARED_BLOCKS)
    own = [rng.bytes(8 * (BLOCKS - SHARED_BLOCKS)) for _ in range(PROMPTS)]
    taken: Measured = []
    for number in range(routes):
        request = pb.RouteRequest(
            request_id=f"{prefix}-{number}",
            model="bench",
            routing_keys=shared + own[number % PROMPTS],
            prompt_tokens=BLOCKS * BLOCK_TOKENS + 1,
            max_tokens=128,
        )
        started_s = time.perf_counter()
        await conductor.route(request)
        taken.append(time.perf_counter() - started_s)
        if number >= 3:
            await conductor.complete(pb.CompleteRequest(request_id=f"{prefix}-{number - 3}"))
        if per_s is not None:
            await asyncio.sleep(rng.exponential(1 / per_s))
    return taken


@contextmanager
def _spawned_conductor() -> Iterator[str]:
    """Its address. It ends with the context."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_run, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(_START_S):
            raise ConfigurationError("the conductor that is to be measured did not start")
        yield str(ours.recv())
    finally:
        ours.close()
        process.join(_START_S)
        process.kill()
        process.join()


def _run(pipe: Connection) -> None:
    asyncio.run(_serve(pipe))


async def _serve(pipe: Connection) -> None:
    """Until the other end of the pipe is closed, or its process is gone."""
    server = ConductorServer(_CONFIG)
    await server.start()
    pipe.send(server.address)
    try:
        await asyncio.to_thread(pipe.poll, None)
    finally:
        await server.stop()

"""What those who run workers see of them: health, reflection and metrics, over real sockets."""

from __future__ import annotations

import asyncio
import re
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from decode_worker.wire.v1.decode_pb2_grpc import DecodeServiceStub
from decode_worker.worker import DecodeWorker
from kvstore.core.errors import ConfigurationError
from kvstore.node.config import NodeConfig
from kvstore.node.daemon import Node
from model_runner.config import WorkerConfig
from model_runner.wire.v1.generation_pb2 import GenerateRequest, SamplingParams
from prefill_worker.wire.v1.prefill_pb2_grpc import PrefillServiceStub
from prefill_worker.worker import PrefillWorker

PROMPT = [7, 3, 9, 4, 11, 6, 8, 2, 15, 21, 13, 5, 19, 17, 23, 29, 31, 37]
DEADLINE_S = 30
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

Worker: TypeAlias = PrefillWorker | DecodeWorker
Kind: TypeAlias = type[PrefillWorker] | type[DecodeWorker]
Start: TypeAlias = Callable[..., Awaitable[Worker]]

KINDS = pytest.mark.parametrize("kind", [PrefillWorker, DecodeWorker])
SERVICES: Mapping[Kind, str] = {
    PrefillWorker: "prefill_worker.wire.v1.PrefillService",
    DecodeWorker: "decode_worker.wire.v1.DecodeService",
}


@pytest.fixture
async def start(checkpoint: Path) -> AsyncIterator[Start]:
    workers = []

    async def start(kind: Kind, **settings: Any) -> Worker:
        defaults = {"model": str(checkpoint), "block_size_tokens": 4, "device_blocks": 64}
        worker = kind(WorkerConfig.model_validate(defaults | settings))
        await worker.start()
        workers.append(worker)
        return worker

    yield start
    for worker in workers:
        await worker.stop()


def call(channel: Any, worker: Worker, prompt: list[int]) -> Any:
    sampling = SamplingParams(max_tokens=4, ignore_eos=True)
    request = GenerateRequest(
        request_id="r", model="tiny", prompt_token_ids=prompt, sampling=sampling
    )
    if isinstance(worker, DecodeWorker):
        return DecodeServiceStub(channel).Generate(request, timeout=DEADLINE_S)
    return PrefillServiceStub(channel).Prefill(request, timeout=DEADLINE_S)


async def ask(worker: Worker, prompt: list[int]) -> list[int]:
    async with grpc.aio.insecure_channel(worker.grpc_address) as channel:
        return [token async for c in call(channel, worker, prompt) for token in c.token_ids]


@KINDS
async def test_reflection_lists_the_service_and_health(start: Start, kind: Kind) -> None:
    worker = await start(kind)
    async with grpc.aio.insecure_channel(worker.grpc_address) as channel:
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        reflected = stub.ServerReflectionInfo(iter([asked]))
        names = {s.name for s in (await reflected.read()).list_services_response.service}
        reflected.cancel()
    assert {SERVICES[kind], "grpc.health.v1.Health"} <= names


@KINDS
async def test_a_worker_whose_engine_died_is_not_serving(start: Start, kind: Kind) -> None:
    """Whoever watches hears of it; whoever asks for tokens is told to go elsewhere."""
    worker = await start(kind)
    async with grpc.aio.insecure_channel(worker.grpc_address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        asked = health_pb2.HealthCheckRequest(service=SERVICES[kind])
        watched = health.Watch(asked, timeout=DEADLINE_S)
        assert (await watched.read()).status == SERVING

        def defect(*_: Any) -> None:
            raise AssertionError("a defect in the bookkeeping")

        worker._engine._core.step = defect  # type: ignore[method-assign]
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await ask(worker, PROMPT)
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "use another worker" in (raised.value.details() or "")
        assert (await watched.read()).status == NOT_SERVING
        watched.cancel()
        whole = await health.Check(health_pb2.HealthCheckRequest())
        assert whole.status == NOT_SERVING


@KINDS
async def test_a_cancelled_call_is_computed_no_further(start: Start, kind: Kind) -> None:
    worker = await start(kind, max_batch_tokens=1, device_blocks=128)
    prompt = [20 + i % 200 for i in range(480)]

    def computed() -> int:
        return worker._engine.statistics().steps.computed_tokens

    async with (
        asyncio.timeout(DEADLINE_S),
        grpc.aio.insecure_channel(worker.grpc_address) as channel,
    ):
        stream = call(channel, worker, prompt)
        reading = asyncio.create_task(stream.read())
        while computed() < 5:  # noqa: ASYNC110 - it happens in the engine's thread
            await asyncio.sleep(0.001)
        stream.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        while worker.load().free_blocks < 128:  # noqa: ASYNC110 - likewise
            await asyncio.sleep(0.001)
    assert 5 <= computed() < len(prompt)


async def scraped(worker: Worker) -> dict[str, float]:
    """Values by name and labels, as a Prometheus server reads them."""
    url = f"http://{worker.metrics_address}/metrics"
    with await asyncio.to_thread(urllib.request.urlopen, url, timeout=DEADLINE_S) as answer:
        text = answer.read().decode()
    values = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = dict(sample.labels)
            assert labels.pop("model") == "tiny"
            name = sample.name.removeprefix("kvstore_worker_")
            values[" ".join([name, *labels.values()])] = sample.value
    return values


@KINDS
async def test_metrics_count_what_a_worker_does(start: Start, kind: Kind, tmp_path: Path) -> None:
    node = Node(NodeConfig.model_validate({"host": "4MiB", "arena_folder": str(tmp_path)}))
    await node.start()
    try:
        first = await start(kind, node=node.zmq_endpoint, metrics_address="127.0.0.1:0")
        before = await scraped(first)
        assert before["free_blocks"] == before["total_blocks"] == 64
        assert before["computed_tokens_total"] == before["step_seconds_count"] == 0
        tokens = await ask(first, PROMPT)
        await ask(first, PROMPT)
        async with asyncio.timeout(DEADLINE_S):
            while (  # noqa: ASYNC110 - it happens in threads of the store
                after := await scraped(first)
            )["published_blocks_total"] < 4:
                await asyncio.sleep(0.02)
        assert after["computed_tokens_total"] == 2 * (len(PROMPT) + len(tokens) - 1) - 16
        assert after["hit_tokens_total device"] == 16
        assert after["step_seconds_count"] == after["step_seconds_bucket +Inf"] > 0
        assert after["step_seconds_sum"] > 0
        assert after["running_requests"] == after["waiting_requests"] == 0
        second = await start(kind, node=node.zmq_endpoint, metrics_address="127.0.0.1:0")
        await ask(second, PROMPT)
        other = await scraped(second)
        assert other["hit_tokens_total host"] == 16
        assert other["fetched_blocks_total"] == 4
        assert other["load_latency_seconds host"] > 0
    finally:
        await node.stop()


async def test_metrics_count_errors_of_the_store_by_their_class(start: Start) -> None:
    worker = await start(
        DecodeWorker,
        node="ipc:///nonexistent/socket",
        fetch_deadline_s=0.2,
        metrics_address="127.0.0.1:0",
    )
    await ask(worker, PROMPT)
    values = await scraped(worker)
    errors = {name for name, count in values.items() if "store_errors_total" in name and count}
    assert any(re.fullmatch(r"store_errors_total \w+Error", name) for name in errors)


async def test_a_metrics_address_that_is_taken_is_named(start: Start) -> None:
    taken = (await start(DecodeWorker, metrics_address="127.0.0.1:0")).metrics_address
    with pytest.raises(
        ConfigurationError, match=f"cannot serve metrics on {re.escape(str(taken))}"
    ):
        await start(DecodeWorker, metrics_address=taken)
    with pytest.raises(ConfigurationError, match=r"cannot serve metrics on 127\.0\.0\.1:http"):
        await start(DecodeWorker, metrics_address="127.0.0.1:http")

"""A decode worker over real gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

import model_runner.worker
from decode_worker.wire.v1.decode_pb2_grpc import DecodeServiceStub
from decode_worker.worker import DecodeWorker
from kvstore.core.errors import ConfigurationError
from model_runner.config import WorkerConfig
from model_runner.runner import ModelRunner
from model_runner.step import ForwardChunk
from model_runner.wire.v1.generation_pb2 import (
    FINISH_REASON_LENGTH,
    GenerateChunk,
    GenerateRequest,
    SamplingParams,
    TokenSequence,
)

PROMPT = [7, 3, 9, 4, 11, 6, 8, 2, 15, 21, 13, 5, 19, 17, 23, 29, 31, 37]
DEADLINE_S = 30


@asynccontextmanager
async def connected(worker: DecodeWorker) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(worker.grpc_address) as channel:
        yield DecodeServiceStub(channel)


def message(**fields: Any) -> GenerateRequest:
    sampling = {"max_tokens": 8, "ignore_eos": True} | fields.pop("sampling", {})
    defaults = {"request_id": "r", "model": "tiny", "prompt_token_ids": PROMPT}
    return GenerateRequest(**(defaults | fields), sampling=SamplingParams(**sampling))


async def collect(stub: Any, request: GenerateRequest) -> list[GenerateChunk]:
    return [chunk async for chunk in stub.Generate(request, timeout=DEADLINE_S)]


def tokens_of(chunks: list[GenerateChunk]) -> list[int]:
    return [token for chunk in chunks for token in chunk.token_ids]


async def eventually(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not holds():  # noqa: ASYNC110 - what is waited for happens in the engine's thread
            await asyncio.sleep(0.01)


async def idle(worker: DecodeWorker) -> None:
    """Until nothing runs and every block is given back."""

    def is_idle() -> bool:
        load = worker.load()
        return load.running == 0 and load.free_blocks == load.total_blocks

    await eventually(is_idle)


async def told_to_cancel(worker: DecodeWorker) -> None:
    """While the gate holds the engine's thread: until it has a call to take."""
    await eventually(lambda: bool(worker._engine._mailbox._calls))


async def test_decode_worker_streams_what_generate_answers(
    start_worker: Any, reference: Any
) -> None:
    worker = await start_worker()
    async with connected(worker) as stub:
        chunks = await collect(stub, message())
        again = await collect(stub, message())
    assert tokens_of(chunks) == tokens_of(again) == reference(PROMPT, 8)
    assert chunks[-1].finish_reason == FINISH_REASON_LENGTH
    assert chunks[0].HasField("hit_tokens")
    assert chunks[0].hit_tokens.device == 0
    assert chunks[0].compute_s > 0
    assert again[0].hit_tokens.device == 16


async def test_decode_worker_goes_on_after_tokens_of_another(
    start_worker: Any, reference: Any
) -> None:
    worker = await start_worker()
    expected = reference(PROMPT, 8)
    async with connected(worker) as stub:
        chunks = await collect(stub, message(output_token_ids=expected[:3]))
    assert tokens_of(chunks) == expected[3:]


async def test_decode_worker_unseeded_sampling_differs_and_seeded_does_not(
    start_worker: Any,
) -> None:
    worker = await start_worker()
    async with connected(worker) as stub:
        hot = {"temperature": 100.0, "max_tokens": 24}
        free = {str(tokens_of(await collect(stub, message(sampling=hot)))) for _ in range(3)}
        seeded = message(sampling=hot | {"seed": 3})
        fixed = {str(tokens_of(await collect(stub, seeded))) for _ in range(2)}
    assert len(free) == 3
    assert len(fixed) == 1


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"prompt_token_ids": []}, "prompt_token_ids is empty"),
        ({"model": "other"}, "model 'other' is not served here: 'tiny' is"),
        ({"prompt_token_ids": [1, 400_000]}, "prompt_token_ids has token 400000"),
        ({"output_token_ids": [400_000]}, "output_token_ids has token 400000"),
        ({"sampling": {"max_tokens": 0}}, "max_tokens must be from 1 to 256, got 0"),
        ({"sampling": {"max_tokens": 250}}, "has 18 tokens and max_tokens is 250: together 268"),
        ({"sampling": {"temperature": -1.0}}, "temperature must be"),
        ({"sampling": {"temperature": float("nan")}}, "temperature must be"),
        ({"sampling": {"top_p": 1.5}}, "top_p must be"),
        ({"sampling": {"top_p": -0.5}}, "top_p must be"),
        ({"output_token_ids": [1] * 8}, "nothing is left to generate"),
        ({"priority": 101}, "priority must be from -100 to 100, got 101"),
    ],
)
async def test_decode_worker_names_what_is_wrong(
    start_worker: Any, fields: dict[str, Any], names: str
) -> None:
    worker = await start_worker()
    async with connected(worker) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await collect(stub, message(**fields))
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert names in (raised.value.details() or "")


async def test_decode_worker_a_request_that_forbids_every_token(
    start_worker: Any, reference: Any
) -> None:
    """It is told so, and the worker serves on."""
    worker = await start_worker()
    words = [TokenSequence(token_ids=[i]) for i in range(worker.model.vocab_size)]
    async with connected(worker) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await collect(stub, message(sampling={"bad_words": words}))
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "leave no token for position 18: forbid fewer" in (raised.value.details() or "")
        assert tokens_of(await collect(stub, message())) == reference(PROMPT, 8)


async def test_decode_worker_nan_logits_end_only_their_request(
    start_worker: Any, reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = ModelRunner.forward

    def sick(self: ModelRunner, chunks: Sequence[ForwardChunk], *rest: Any) -> torch.Tensor:
        logits = forward(self, chunks, *rest).clone()
        logits[[i for i, chunk in enumerate(chunks) if chunk.token_ids[0] == 1]] = torch.nan
        return logits

    monkeypatch.setattr(ModelRunner, "forward", sick)
    worker = await start_worker()
    async with connected(worker) as stub:
        hot = {"temperature": 1.0, "top_p": 0.9, "frequency_penalty": 0.5, "logprobs": 2}
        good, bad = await asyncio.gather(
            collect(stub, message()),
            collect(stub, message(prompt_token_ids=[1, 2, 3], sampling=hot)),
            return_exceptions=True,
        )
    assert tokens_of(good) == reference(PROMPT, 8)
    assert isinstance(bad, grpc.aio.AioRpcError)
    assert "logits at position 3 are not finite" in (bad.details() or "")


async def test_decode_worker_refuses_when_its_queue_is_full(start_worker: Any, gate: Any) -> None:
    worker = await start_worker(max_running=1, max_waiting=1)
    async with connected(worker) as stub:
        calls = [asyncio.create_task(collect(stub, message())) for _ in range(3)]
        done, pending = await asyncio.wait(
            calls, timeout=DEADLINE_S, return_when=asyncio.FIRST_COMPLETED
        )
        assert len(done) == 1
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await done.pop()
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        gate.allow(1_000)
        assert [len(tokens_of(await call)) for call in pending] == [8, 8]


async def test_decode_worker_cancelling_the_call_frees_the_blocks(
    start_worker: Any, gate: Any
) -> None:
    worker = await start_worker()
    async with connected(worker) as stub:
        stream = stub.Generate(message(sampling={"max_tokens": 230}), timeout=DEADLINE_S)
        gate.allow(1)
        await stream.read()
        await eventually(lambda: gate.entries == 2)
        stream.cancel()
        await told_to_cancel(worker)
        gate.allow(1_000)
        await idle(worker)
    assert gate.steps < 100


async def test_decode_worker_a_reader_that_stops_reading_loses_nothing(
    start_worker: Any, reference: Any
) -> None:
    """Tokens wait in the worker, in one list; others are served meanwhile."""
    worker = await start_worker()
    async with connected(worker) as stub:
        slow = stub.Generate(message(sampling={"max_tokens": 200}), timeout=DEADLINE_S)
        reader = aiter(slow)
        first = await anext(reader)
        assert len(tokens_of(await collect(stub, message()))) == 8
        await idle(worker)
        rest = [chunk async for chunk in reader]
    assert tokens_of([first, *rest]) == reference(PROMPT, 200)


async def test_decode_worker_a_passed_deadline_frees_the_blocks(
    start_worker: Any, gate: Any
) -> None:
    worker = await start_worker()
    async with connected(worker) as stub:
        stream = stub.Generate(message(sampling={"max_tokens": 230}), timeout=1.0)
        assert await asyncio.to_thread(gate.entered.wait, DEADLINE_S)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stream.read()
        assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await told_to_cancel(worker)
        gate.allow(1_000)
        await idle(worker)
    assert gate.steps < 100


async def test_decode_worker_health_and_reflection(start_worker: Any) -> None:
    worker = await start_worker()
    async with grpc.aio.insecure_channel(worker.grpc_address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "decode_worker.wire.v1.DecodeService"):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        call = reflection.ServerReflectionInfo(iter([asked]))
        names = {s.name for r in [await call.read()] for s in r.list_services_response.service}
        call.cancel()
    assert "decode_worker.wire.v1.DecodeService" in names


async def test_decode_worker_stopping_lets_running_requests_finish(
    start_worker: Any, reference: Any
) -> None:
    worker = await start_worker()
    async with connected(worker) as stub:
        stream = stub.Generate(message(sampling={"max_tokens": 60}), timeout=DEADLINE_S)
        reader = aiter(stream)
        first = await anext(reader)
        stopping = asyncio.create_task(worker.stop())
        rest = [chunk async for chunk in reader]
        await stopping
    assert tokens_of([first, *rest]) == reference(PROMPT, 60)
    await worker.stop()


async def test_decode_worker_stopping_refuses_new_requests(
    start_worker: Any, gate: Any, reference: Any
) -> None:
    """With a status that sends them to another worker; what was admitted is finished."""
    worker = await start_worker()
    async with connected(worker) as stub:
        running = asyncio.create_task(collect(stub, message()))
        assert await asyncio.to_thread(gate.entered.wait, DEADLINE_S)
        stopping = asyncio.create_task(worker.stop())
        await eventually(lambda: worker._engine._live.closed)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await collect(stub, message())
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        gate.allow(1_000)
        assert tokens_of(await running) == reference(PROMPT, 8)
        await stopping


async def test_decode_worker_stopping_ends_what_does_not_finish_in_time(
    start_worker: Any, gate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_runner.worker, "_DRAIN_S", 0.1)
    worker = await start_worker()
    async with connected(worker) as stub:
        running = asyncio.create_task(collect(stub, message(sampling={"max_tokens": 200})))
        assert await asyncio.to_thread(gate.entered.wait, DEADLINE_S)
        stopping = asyncio.create_task(worker.stop())
        await eventually(lambda: worker._engine._mailbox._calls != [])
        gate.allow(1)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await running
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        await stopping


async def test_decode_worker_tells_what_it_serves(start_worker: Any, checkpoint: Path) -> None:
    worker = await start_worker(served_model_name="named", device_blocks=8)
    assert worker.model.name == "named"
    assert worker.model.path == str(checkpoint)
    assert worker.model.max_context_tokens == 32
    assert worker.model.identity.layout.block_size_tokens == 4
    assert worker.epoch > 0
    assert worker.event_endpoint.startswith("tcp://127.0.0.1:")
    assert worker.load().total_blocks == 8


async def test_decode_worker_that_cannot_start_leaves_nothing(
    start_worker: Any, checkpoint: Path, tmp_path: Path
) -> None:
    for settings, names in (
        ({"model": str(tmp_path / "none")}, "no such folder"),
        ({"grpc_address": (await start_worker()).grpc_address}, "cannot listen on"),
    ):
        config = {"model": str(checkpoint), "device_blocks": 8} | settings
        worker = DecodeWorker(WorkerConfig.model_validate(config))
        with pytest.raises(ConfigurationError, match=names):
            await worker.start()

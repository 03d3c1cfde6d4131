"""A prefill or decode worker in a process of its own, and a client of it that keeps time."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Literal

from cluster.bench.engine_setup import MODEL_NAME, Prompt
from kvstore.client.loop_thread import LoopThread
from kvstore.core.errors import ConfigurationError, KVStoreError
from kvstore.core.identity import ModelIdentity
from kvstore.tiers.base import TierKind
from kvstore.transports.grpc.channel import GrpcChannel
from model_runner.config import WorkerConfig
from model_runner.wire.v1 import generation_pb2 as wire

if TYPE_CHECKING:
    from decode_worker.worker import DecodeWorker
    from prefill_worker.worker import PrefillWorker

Role = Literal["prefill", "decode"]
START_S = 120.0
STOP_S = 20.0
ANSWER_S = 600.0
_VERBS = {
    "prefill": ("prefill_worker.wire.v1.PrefillService", "Prefill"),
    "decode": ("decode_worker.wire.v1.DecodeService", "Generate"),
}


@dataclass(frozen=True, slots=True)
class WorkerProcess:
    role: Role
    pid: int
    grpc_address: str
    identity: ModelIdentity
    start_s: float
    """From the end of the imports to being ready."""


@contextmanager
def spawned_worker(role: Role, config: WorkerConfig) -> Iterator[WorkerProcess]:
    """A worker that serves. It ends with the context.

    Raises ConfigurationError if it does not start.
    """
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_run, args=(role, config, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        assert process.pid is not None
        yield WorkerProcess(role, process.pid, *started(ours))
    finally:
        ours.close()
        process.join(STOP_S)
        process.kill()
        process.join()


@dataclass(slots=True)
class Answer:
    """What a worker told of one request, and when."""

    asked_s: float
    token_ids: list[int] = field(default_factory=list)
    token_times_s: list[float] = field(default_factory=list)
    """When each of them came."""
    hit_tokens: dict[TierKind, int] = field(default_factory=dict)
    ended_s: float = 0.0
    """A prefill worker ends when all blocks of the prompt are in the store."""

    @property
    def ttft_s(self) -> float:
        return self.token_times_s[0] - self.asked_s

    @property
    def published_s(self) -> float:
        return self.ended_s - self.asked_s

    def add(self, chunk: wire.GenerateChunk) -> None:
        now_s = time.perf_counter()
        if chunk.HasField("hit_tokens"):
            hits = chunk.hit_tokens
            self.hit_tokens = {
                tier: tokens
                for tier in TierKind
                if (tokens := getattr(hits, tier.name.lower(), 0)) > 0
            }
        self.token_ids += chunk.token_ids
        self.token_times_s += [now_s] * len(chunk.token_ids)
        self.ended_s = now_s


class WorkerClient:
    """Asks one worker over gRPC, greedily and past EOS. Made and used on one event loop."""

    def __init__(self, worker: WorkerProcess) -> None:
        service, self._method = _VERBS[worker.role]
        self._channel = GrpcChannel(worker.grpc_address, service)
        self._number = 0

    async def ask(
        self, prompt: Prompt, max_tokens: int = 1, *, output: Sequence[int] = ()
    ) -> Answer:
        """To its end. Raises what ends the request, and KVStoreError if no token came."""
        answer = Answer(time.perf_counter())
        async for chunk in self.stream(prompt, max_tokens, output=output):
            answer.add(chunk)
        if not answer.token_ids:
            raise KVStoreError("bench engine: a worker ended an answer without a token")
        return answer

    async def stream(
        self, prompt: Prompt, max_tokens: int, *, output: Sequence[int] = ()
    ) -> AsyncIterator[wire.GenerateChunk]:
        self._number += 1
        request = wire.GenerateRequest(
            request_id=str(self._number),
            model=MODEL_NAME,
            prompt_token_ids=prompt,
            output_token_ids=output,
            sampling=wire.SamplingParams(max_tokens=max_tokens, ignore_eos=True),
        )
        chunks = self._channel.download(
            self._method, request, wire.GenerateChunk, deadline_s=ANSWER_S
        )
        async with aclosing(chunks):  # type: ignore[type-var]
            async for chunk in chunks:
                yield chunk

    async def close(self) -> None:
        await self._channel.close()


class BlockingClient:
    """The same for code that blocks; its event loop has a thread of its own."""

    def __init__(self, worker: WorkerProcess) -> None:
        self._loop = LoopThread("bench-client")
        self._client = self._loop.run(_connect(worker))

    def ask(self, prompt: Prompt, max_tokens: int = 1) -> Answer:
        """See `WorkerClient.ask`."""
        return self._loop.run(self._client.ask(prompt, max_tokens))

    def close(self) -> None:
        self._loop.run(self._client.close())
        self._loop.stop()


async def _connect(worker: WorkerProcess) -> WorkerClient:
    return WorkerClient(worker)


def started(pipe: Connection) -> tuple[str, ModelIdentity, float]:
    """What a worker's process tells when it serves. Raises ConfigurationError if it does not."""
    try:
        if pipe.poll(START_S):
            address, identity, start_s = pipe.recv()
            return address, identity, start_s
    except EOFError:
        pass
    raise ConfigurationError("the worker that is to be measured did not start; see what it logged")


def _run(role: Role, config: WorkerConfig, pipe: Connection) -> None:
    from decode_worker.worker import DecodeWorker
    from prefill_worker.worker import PrefillWorker

    worker = PrefillWorker(config) if role == "prefill" else DecodeWorker(config)
    asyncio.run(_serve(worker, pipe))


async def _serve(worker: PrefillWorker | DecodeWorker, pipe: Connection) -> None:
    """Until the other end of the pipe is closed, or its process is gone."""
    started_s = time.perf_counter()
    await worker.start()
    start_s = time.perf_counter() - started_s
    pipe.send((worker.grpc_address, worker.model.identity, start_s))
    try:
        await asyncio.to_thread(pipe.poll, None)
    finally:
        await worker.stop()

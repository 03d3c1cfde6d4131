"""A cluster of scripted gRPC workers and a scripted conductor behind a real gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import httpx
import openai
import pytest
import pytest_asyncio
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from cluster.conductor.config import ConductorConfig
from cluster.gateway.app import Gateway
from cluster.gateway.config import GatewayConfig
from cluster.membership.client import ConductorClient
from cluster.membership.server import ConductorServer
from cluster.wire.v1 import conductor_pb2 as conductor
from cluster.wire.v1.conductor_pb2_grpc import (
    ConductorServiceServicer,
    add_ConductorServiceServicer_to_server,
)
from decode_worker.wire.v1.decode_pb2_grpc import (
    DecodeServiceServicer,
    add_DecodeServiceServicer_to_server,
)
from kvstore.core import errors
from kvstore.transports.status import abort
from kvstore.wire.v1 import block_pb2 as block
from model_runner.wire.v1 import generation_pb2 as generation
from prefill_worker.wire.v1.prefill_pb2_grpc import (
    PrefillServiceServicer,
    add_PrefillServiceServicer_to_server,
)

MODEL = "tiny"
CONTEXT_TOKENS = 512
BLOCK_TOKENS = 4
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@pytest.fixture(scope="session")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    path: Path = tmp_path_factory.mktemp("tiny")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dog"] * 4, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="session")
def tokenizer(tokenizer_path: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(tokenizer_path)


@dataclass
class Script:
    """What the model "computes": token i of every answer is `token_ids[i]`; EOS comes last."""

    token_ids: list[int] = field(default_factory=list)
    eos_token_id: int = 0

    def at(self, index: int) -> int:
        return self.token_ids[index] if index < len(self.token_ids) else self.eos_token_id


Fault = Callable[[], Awaitable[None]]


class Worker:
    """What both scripted workers share: `fault` is awaited instead of token `fault_at`."""

    def __init__(self, script: Script, hits: generation.HitTokens) -> None:
        self.script = script
        self.hits = hits
        self.server: grpc.aio.Server
        self.address = ""
        self.stopping: asyncio.Task[None] | None = None
        self.reset()

    def reset(self) -> None:
        self.requests: list[generation.GenerateRequest] = []
        self.asked = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.fault_at: int | None = None
        self.fault: Fault | None = None
        self.refusal: errors.KVStoreError | None = None

    async def start(self) -> None:
        self.server = grpc.aio.server()
        self.add_to(self.server)
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        await self.server.start()

    async def stop(self) -> None:
        """Also from a handler, which the stop cancels: so the stop is a task of its own."""
        self.stopping = self.stopping or asyncio.create_task(self.server.stop(None))
        await asyncio.shield(self.stopping)

    def add_to(self, server: grpc.aio.Server) -> None:
        raise NotImplementedError

    async def answer(self, request: generation.GenerateRequest, context, tokens_max: int):
        self.requests.append(request)
        self.asked.set()
        if self.refusal:
            await abort(context, self.refusal)
        try:
            first = len(request.output_token_ids)
            for index in range(first, min(request.sampling.max_tokens, first + tokens_max)):
                if index == self.fault_at:
                    await self.fault()
                    await abort(context, errors.UnavailableError("the worker died"))
                yield self.chunk(request, index, is_first=index == first)
                if self.script.at(index) == self.script.eos_token_id:
                    return
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    def chunk(self, request, index: int, *, is_first: bool) -> generation.GenerateChunk:
        token_id = self.script.at(index)
        chunk = generation.GenerateChunk(token_ids=[token_id])
        if token_id == self.script.eos_token_id:
            chunk.finish_reason = generation.FINISH_REASON_STOP
        elif index + 1 == request.sampling.max_tokens:
            chunk.finish_reason = generation.FINISH_REASON_LENGTH
        if is_first:
            chunk.hit_tokens.CopyFrom(self.hits)
            chunk.missed_blocks["evicted"] = 2
            chunk.compute_s = 0.25
        return chunk


class PrefillWorker(Worker, PrefillServiceServicer):
    def add_to(self, server: grpc.aio.Server) -> None:
        add_PrefillServiceServicer_to_server(self, server)

    publish_fault: Fault | None = None
    publish: Fault | None = None
    """What publishing takes."""

    async def Prefill(self, request, context):
        async for chunk in self.answer(request, context, 1):
            yield chunk
        if self.publish:
            try:
                await self.publish()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        if self.publish_fault:
            await self.publish_fault()
            await abort(context, errors.UnavailableError("the worker died"))
        yield generation.GenerateChunk(published=True)


class DecodeWorker(Worker, DecodeServiceServicer):
    def add_to(self, server: grpc.aio.Server) -> None:
        add_DecodeServiceServicer_to_server(self, server)

    async def Generate(self, request, context):
        async for chunk in self.answer(request, context, 1 << 30):
            yield chunk


class Conductor(ConductorServiceServicer):
    """Routes to what the test says; keeps what it was asked and told."""

    def __init__(self) -> None:
        self.members: list[conductor.Member] = []
        self.prefill: conductor.Member | None = None
        self.decode: list[conductor.Member] = []
        self.routes: list[conductor.RouteRequest] = []
        self.refusal: errors.KVStoreError | None = None
        self.chosen: conductor.Candidate | None = None
        self.completions: asyncio.Queue[conductor.CompleteRequest] = asyncio.Queue()
        self.address = ""

    async def start(self) -> None:
        self.server = grpc.aio.server()
        add_ConductorServiceServicer_to_server(self, self.server)
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        await self.server.start()

    async def stop(self) -> None:
        await self.server.stop(None)

    async def ListMembers(self, request, context):
        statuses = [conductor.MemberStatus(member=member) for member in self.members]
        return conductor.ListMembersResponse(members=statuses)

    async def Route(self, request, context):
        self.routes.append(request)
        if self.refusal:
            await abort(context, self.refusal)
        if not self.decode:
            await abort(context, errors.UnavailableError("no decode worker is there"))
        decode = self.decode[0] if len(self.decode) == 1 else self.decode.pop(0)
        chosen = self.chosen
        return conductor.RouteResponse(
            prefill=self.prefill,
            decode=decode,
            chosen=chosen,
            candidates=[] if chosen is None else [chosen],
        )

    async def Complete(self, request, context):
        self.completions.put_nowait(request)
        return conductor.CompleteResponse()


@dataclass
class Cluster:
    conductor: Conductor
    prefill: PrefillWorker
    decode: DecodeWorker
    spare: DecodeWorker
    """A second decode worker; registered, but not what the conductor chooses."""
    script: Script
    tokenizer: PreTrainedTokenizerFast
    gateway: Gateway
    openai: openai.AsyncOpenAI
    http: httpx.AsyncClient
    model: conductor.ModelInfo

    def reset(self) -> Cluster:
        self.answers("the lazy dog")
        self.conductor.prefill = self.conductor.members[0]
        self.conductor.decode = [self.conductor.members[1]]
        self.conductor.routes.clear()
        self.prefill.reset()
        self.decode.reset()
        return self

    def answers(self, text: str) -> None:
        self.script.token_ids = self.tokenizer.encode(text)

    def decode_only(self) -> None:
        self.conductor.prefill = None


ClusterOf = Callable[..., AbstractAsyncContextManager[Cluster]]


def model_info(path: str) -> conductor.ModelInfo:
    layout = block.KVLayout(
        num_layers=1, num_kv_heads=1, head_dim=4, block_size_tokens=BLOCK_TOKENS, dtype="float32"
    )
    return conductor.ModelInfo(
        name=MODEL,
        identity_root=b"r" * 32,
        layout=layout,
        max_context_tokens=CONTEXT_TOKENS,
        path=path,
    )


@asynccontextmanager
async def run_cluster(
    tokenizer: PreTrainedTokenizerFast, model: conductor.ModelInfo, settings: dict[str, object]
) -> AsyncIterator[Cluster]:
    script = Script(eos_token_id=tokenizer.eos_token_id)
    center = Conductor()
    prefill = PrefillWorker(script, generation.HitTokens(device=1, host=2, disk=3, remote=4))
    decode = DecodeWorker(script, generation.HitTokens(host=8))
    spare = DecodeWorker(script, generation.HitTokens())
    async with AsyncExitStack() as stack:
        for part in (center, prefill, decode, spare):
            await part.start()
            stack.push_async_callback(part.stop)
        center.members = [
            conductor.Member(member_id=name, role=role, grpc_address=worker.address, model=model)
            for name, role, worker in (
                ("prefill-0", conductor.ROLE_PREFILL, prefill),
                ("decode-0", conductor.ROLE_DECODE, decode),
                ("decode-1", conductor.ROLE_DECODE, spare),
            )
        ]
        config = GatewayConfig(port=0, conductor=center.address, **settings)
        gateway = Gateway(config, drain_s=0)
        await gateway.start()
        stack.push_async_callback(gateway.stop)
        client = openai.AsyncOpenAI(
            base_url=f"{gateway.base_url}/v1", api_key="none", max_retries=0, timeout=20
        )
        stack.push_async_callback(client.close)
        http = await stack.enter_async_context(
            httpx.AsyncClient(base_url=gateway.base_url, timeout=20)
        )
        yield Cluster(
            center, prefill, decode, spare, script, tokenizer, gateway, client, http, model
        ).reset()


@pytest.fixture
async def conducted(
    cluster: Cluster,
) -> AsyncIterator[tuple[Cluster, ConductorServer, openai.AsyncOpenAI]]:
    """The workers of `cluster` behind a real conductor, and a client of its gateway."""
    async with AsyncExitStack() as stack:
        server = ConductorServer(ConductorConfig(grpc_address="127.0.0.1:0"))
        await server.start()
        stack.push_async_callback(server.stop)
        members = await stack.enter_async_context(ConductorClient(server.address))
        for member in cluster.conductor.members:
            await members.register(member, epoch=1)
        gateway = Gateway(GatewayConfig(port=0, conductor=server.address), drain_s=0)
        await gateway.start()
        stack.push_async_callback(gateway.stop)
        client = openai.AsyncOpenAI(
            base_url=f"{gateway.base_url}/v1", api_key="none", max_retries=0, timeout=20
        )
        stack.push_async_callback(client.close)
        yield cluster, server, client


@pytest.fixture(scope="session")
def cluster_of() -> ClusterOf:
    """Starts a cluster with a tokenizer, saved at a path, and settings of the gateway."""

    def start(
        tokenizer: PreTrainedTokenizerFast, path: str, settings: dict[str, object] | None = None
    ) -> AbstractAsyncContextManager[Cluster]:
        return run_cluster(tokenizer, model_info(path), settings or {})

    return start


@pytest.fixture
def gateway_settings() -> dict[str, object]:
    """Settings of the gateway other than the defaults; parametrise to change."""
    return {}


@pytest.fixture
async def cluster(
    tokenizer_path: str,
    tokenizer: PreTrainedTokenizerFast,
    gateway_settings: dict[str, object],
) -> AsyncIterator[Cluster]:
    """A cluster of its own, which the test may break."""
    async with run_cluster(tokenizer, model_info(tokenizer_path), gateway_settings) as running:
        yield running


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared_cluster(
    tokenizer_path: str, tokenizer: PreTrainedTokenizerFast
) -> AsyncIterator[Cluster]:
    """For tests that break nothing: `reset` it first."""
    async with run_cluster(tokenizer, model_info(tokenizer_path), {}) as running:
        yield running

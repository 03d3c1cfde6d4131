"""Engines whose work can be watched."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from decode_worker.scheduler import DecodeScheduler
from kvstore.client.sync import SyncClient
from kvstore.core.hashing import block_hashes
from kvstore.core.ids import BlockKeys, RequestId
from kvstore.tiers.base import TierKind
from model_runner.attention import OnLayer
from model_runner.config import WorkerConfig
from model_runner.engine import Engine
from model_runner.engine_output import EngineOutput
from model_runner.inventory import RecordedInventory
from model_runner.load_or_compute import LoadPlanner
from model_runner.runner import ModelRunner
from model_runner.sampling.logprobs import TokenLogprobs
from model_runner.step import ForwardChunk
from model_runner.store import NullStore, StoreConnector
from model_runner.store_node import NodeStore
from model_runner.types import FinishReason, Request, SamplingParams, Scheduler
from prefill_worker.scheduler import PrefillScheduler

from .families import ANSWER_TOKENS, BLOCK, Family
from .nodes import DEADLINE_S, StoreNode


@dataclass
class Answer:
    """Collects what the engine tells of one request."""

    request: Request
    outputs: list[EngineOutput] = field(default_factory=list)
    begun: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)

    def __call__(self, output: EngineOutput) -> None:
        assert not self.over.is_set(), "told something after the end"
        self.outputs.append(output)
        if output.token_ids:
            self.begun.set()
        if output.published or output.error or output.finish_reason is FinishReason.CANCELLED:
            self.over.set()

    def wait(self) -> Answer:
        assert self.over.wait(DEADLINE_S), "no end"
        assert self.outputs[-1].error is None, self.outputs[-1].error
        return self

    @property
    def tokens(self) -> list[int]:
        return [token for output in self.outputs for token in output.token_ids]

    @property
    def prompt_logprobs(self) -> list[TokenLogprobs]:
        return [one for output in self.outputs for one in output.prompt_logprobs]

    @property
    def logprobs(self) -> list[TokenLogprobs]:
        return [one for output in self.outputs for one in output.logprobs]

    @property
    def hits(self) -> dict[TierKind, int]:
        (first,) = [output.first for output in self.outputs if output.first]
        return dict(first.hit_tokens)

    @property
    def hit_tokens(self) -> int:
        return sum(self.hits.values())


class Watched:
    """A runner that says how many tokens it computed; its forward can be held up."""

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner
        self.num_computed = 0
        self.after_layer: OnLayer = lambda layer: None
        self.go = threading.Event()
        self.go.set()
        self.entered = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def forward(
        self, chunks: Sequence[ForwardChunk], on_layer: OnLayer | None = None
    ) -> torch.Tensor:
        self.entered.set()
        assert self.go.wait(DEADLINE_S)
        self.num_computed += sum(len(chunk.token_ids) for chunk in chunks)

        def told(layer: int) -> None:
            if on_layer is not None:
                on_layer(layer)
            self.after_layer(layer)

        return self._runner.forward(chunks, told)


class Bench:
    """An engine of one family, with its store connector. Its blocks are the tenant `salt`'s."""

    def __init__(
        self, runner: ModelRunner, scheduler: Scheduler, store: StoreConnector, salt: str
    ) -> None:
        self.runner = runner
        self.model = Watched(runner)
        self.store = store
        self.root = replace(runner.identity, tenant_salt=salt).root()
        sink = RecordedInventory(runner.layout.fingerprint)
        self.engine = Engine(self.model, scheduler, store, sink, max_live=64)

    def submit(
        self,
        prompt: Sequence[int],
        max_tokens: int = ANSWER_TOKENS,
        *,
        output: Sequence[int] = (),
        sampling: SamplingParams | None = None,
        **fields: Any,
    ) -> Answer:
        """`output` is what another engine has answered already."""
        request = Request(
            RequestId(str(next(_NUMBERS))),
            [*prompt, *output],
            len(prompt),
            sampling or SamplingParams(max_tokens=max_tokens, ignore_eos=True),
            identity_root=self.root,
            **fields,
        )
        answer = Answer(request)
        self.engine.submit(request, answer)
        return answer

    def ask(self, prompt: Sequence[int], *args: Any, **fields: Any) -> Answer:
        return self.submit(prompt, *args, **fields).wait()

    def ask_together(self, prompts: Sequence[Sequence[int]], **fields: Any) -> list[Answer]:
        """All are there before the first of them is computed."""
        with self.held():
            answers = [self.submit(prompt, **fields) for prompt in prompts]
        return [answer.wait() for answer in answers]

    def held(self) -> ExitStack:
        """While the context lasts, the engine is in the middle of a step that is not of the tests'
        requests, and computes nothing else."""
        self.model.entered.clear()
        self.model.go.clear()
        other = self.submit([1], 1, bypass_cache=True)
        assert self.model.entered.wait(DEADLINE_S)
        stack = ExitStack()
        stack.callback(other.wait)
        stack.callback(self.model.go.set)
        return stack

    def computed(self) -> int:
        """How many tokens since this was last asked. Only while it is idle."""
        count, self.model.num_computed = self.model.num_computed, 0
        return count

    def has_loaded_any(self) -> bool:
        """Something is in its device tier, or a layer of it, which has computed nothing yet."""
        return any(not cache.tensor.isnan().all() for cache in self.runner.caches)

    def keys(self, token_ids: Sequence[int]) -> list[BlockKeys]:
        """What the full blocks of these tokens are called, for each KV group."""
        hashes = block_hashes(self.root, list(token_ids), BLOCK)
        return [BlockKeys(group.layout.fingerprint, hashes) for group in self.runner.groups]

    def keys_of_block(self, token_ids: Sequence[int], block: int) -> list[BlockKeys]:
        whole = self.keys(token_ids)
        return [BlockKeys(part.layout, [part.hashes[block]]) for part in whole]


_NUMBERS = itertools.count()


class Lab:
    """Makes engines for one test, and closes them."""

    def __init__(self, family: Family, salt: str) -> None:
        self.family = family
        self.reference = family.reference
        self.salt = salt
        self._stack = ExitStack()

    def bench(
        self,
        node: StoreNode | None = None,
        *,
        device_blocks: int = 64,
        max_batch_tokens: int = 64,
        prefill: bool = False,
        planner: LoadPlanner | None = None,
    ) -> Bench:
        runner = self.family.take(device_blocks)
        self._stack.callback(self.family.give_back, device_blocks, runner)
        store: StoreConnector = NullStore()
        if node is not None:
            store = self._open(node, runner, planner)
        kind = PrefillScheduler if prefill else DecodeScheduler
        bench = Bench(
            runner, kind(max_batch_tokens=max_batch_tokens, max_running=8), store, self.salt
        )
        self._stack.callback(bench.engine.close)
        return bench

    def config(self, node: StoreNode, **settings: Any) -> WorkerConfig:
        common = {"node": node.endpoint, "fetch_deadline_s": DEADLINE_S}
        return self.family.config.model_copy(update=common | settings)

    def _open(
        self, node: StoreNode, runner: ModelRunner, planner: LoadPlanner | None
    ) -> StoreConnector:
        """As a worker does; without a planner, all that is there is loaded."""
        store = NodeStore(
            runner.groups,
            runner.caches,
            partial(
                SyncClient.connect,
                node.endpoint,
                client_name=self.salt,
                layouts=[group.layout for group in runner.groups],
                verify="always",
            ),
            deadline_s=DEADLINE_S,
            max_pending_blocks=256,
            planner=planner,
        )
        store.open()
        self._stack.callback(store.close)
        return store

    def close(self) -> None:
        self._stack.close()

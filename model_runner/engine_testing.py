"""For tests: an engine's core without its thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from kvstore.core.errors import KVStoreError
from model_runner.attention import OnLayer
from model_runner.engine_core import EngineCore
from model_runner.engine_output import EngineOutput, EngineStatistics
from model_runner.engine_request import LiveRequest, LiveRequests
from model_runner.inventory import RecordedInventory
from model_runner.runner import ModelRunner
from model_runner.sampling.logprobs import TokenLogprobs
from model_runner.step import ForwardChunk
from model_runner.store import NullStore
from model_runner.store_testing import MemoryStore
from model_runner.types import FinishReason, Request, Scheduler


class Counting:
    """A runner that says how many tokens it computed."""

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner
        self.groups, self.caches = runner.groups, runner.caches
        self.eos_token_ids = runner.eos_token_ids
        self.num_computed = 0

    def forward(
        self, chunks: Sequence[ForwardChunk], on_layer: OnLayer | None = None
    ) -> torch.Tensor:
        self.num_computed += sum(len(chunk.token_ids) for chunk in chunks)
        return self._runner.forward(chunks, on_layer)


@dataclass
class Told:
    """What a request was told, put together."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    ends: list[FinishReason] = field(default_factory=list)
    error: KVStoreError | None = None
    num_first: int = 0
    over: bool = False

    def __call__(self, output: EngineOutput) -> None:
        assert not self.over, "told something after the end"
        self.tokens += output.token_ids
        self.logprobs += output.logprobs
        self.prompt_logprobs += output.prompt_logprobs
        self.ends += [output.finish_reason] if output.finish_reason else []
        self.error = output.error
        self.num_first += output.first is not None
        cancelled = output.finish_reason is FinishReason.CANCELLED
        self.over = output.published or cancelled or output.error is not None


class Stage:
    """Steps a core, with whatever the store answers in between. One thread, no clock."""

    def __init__(
        self, runner: ModelRunner, scheduler: Scheduler, store: MemoryStore | None = None
    ) -> None:
        self.model = Counting(runner)
        self.store = store
        self._live = LiveRequests(100)
        self._calls: list[Callable[[], None]] = []
        self.core = EngineCore(
            self.model,
            scheduler,
            store or NullStore(),
            RecordedInventory(runner.groups[0].layout.fingerprint),
            self._live,
            self._calls.append,
            lambda: 0.0,
        )

    def add(self, request: Request) -> Told:
        told = Told()
        self._live.enter(LiveRequest(request, told))
        self.core.add(request)
        return told

    def step(self) -> bool:
        """False if nothing can happen any more without a new request."""
        if self.store:
            self.store.answer()
        calls = list(self._calls)
        self._calls.clear()
        for call in calls:
            call()
        more = self.core.step()
        return more or bool(self._calls) or not (self.store is None or self.store.idle)

    def run(self) -> None:
        """Until nothing happens any more."""
        for _ in range(5_000):
            if not self.step():
                return
        raise AssertionError("it does not come to an end")

    def statistics(self) -> EngineStatistics:
        return self.core.statistics()

    @property
    def all_free(self) -> bool:
        """In all KV groups."""
        return all(pool.num_free == pool.num_blocks for pool in self.core.pools)

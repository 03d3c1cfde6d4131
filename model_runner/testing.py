"""For tests: a small checkpoint and what plain `generate` answers with it; a simulator for
schedulers (real block bookkeeping, no model) that asserts what they all promise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias

import torch
from transformers import AutoModelForCausalLM

from kvstore.core.ids import RequestId
from kvstore.core.layout import KVLayout
from kvstore.tiers.base import TierKind
from kvstore.tiers.device.pool import BlockPool
from model_runner.engine_blocks import BlockTables
from model_runner.kv_groups import KVGroup
from model_runner.store import BlockRun
from model_runner.tiny import SMALL, build_checkpoint
from model_runner.types import Chunk, Request, SamplingParams, Scheduler

Reference: TypeAlias = Callable[[Sequence[int], int], list[int]]
"""(prompt, number of new tokens) -> the answer."""


def small_checkpoint(folder: Path) -> Path:
    """A random Llama that answers clearly, with its tokenizer."""
    return build_checkpoint(folder, texts=["a block of text to learn from"], shape=SMALL)


def plain_generate(checkpoint: Path) -> Reference:
    """What `transformers` answers greedily: float32, CPU, past EOS."""
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    model.eval()

    def generate(prompt: Sequence[int], max_tokens: int) -> list[int]:
        with torch.inference_mode():
            tokens = model.generate(
                torch.tensor([list(prompt)]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
                max_new_tokens=max_tokens,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        return [int(token) for token in tokens[0, len(prompt) :]]

    return generate


def window_group(window_tokens: int | None, block_size_tokens: int) -> KVGroup:
    """Of one small layer."""
    return KVGroup(KVLayout(1, 1, 1, block_size_tokens, "float32"), (0,), window_tokens)


def blocks_needed(groups: Sequence[KVGroup], num_tokens: int) -> int:
    """The fewest device blocks for each group with which one such request gets to its end."""
    return next(n for n in count(1) if all(_has_room(group, n, num_tokens) for group in groups))


def _has_room(group: KVGroup, num_blocks: int, num_tokens: int) -> bool:
    room = group.room_tokens(num_blocks)
    return room is None or num_tokens <= room


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request to come. Prompts of the same `seed` share their tokens from the start."""

    step: int
    num_prompt_tokens: int
    max_tokens: int
    seed: int = 0
    load_steps: int = 0
    """Steps until the store answers."""
    loaded_blocks: int = 0
    """How many blocks it then brings, at most."""
    cancelled_after_steps: int | None = None
    priority: int = 0


@dataclass(slots=True)
class SchedulerSimulation:
    """Runs arrivals to their end, one `schedule` a step."""

    scheduler: Scheduler
    num_blocks: int
    block_size_tokens: int
    max_batch_tokens: int
    max_running: int
    asks_store: bool = False
    leave_steps: int = 0
    """Steps until the store has copied the blocks of a preempted request."""
    finished: list[RequestId] = field(default_factory=list)
    """In order; cancelled ones are not among them."""
    steps: list[Sequence[Chunk]] = field(default_factory=list)
    groups: Sequence[KVGroup] | None = None
    """Default: one, with full attention."""
    pools: Sequence[BlockPool] = field(init=False)
    _blocks: BlockTables = field(init=False)
    _live: dict[Request, Arrival] = field(default_factory=dict)
    _loading: dict[Request, int] = field(default_factory=dict)
    """Step at which the store answers."""
    _leaving: list[tuple[int, Sequence[BlockRun]]] = field(default_factory=list)
    """With the step at which they have left."""

    def __post_init__(self) -> None:
        groups = self.groups or [window_group(None, self.block_size_tokens)]
        self.pools = [BlockPool(self.num_blocks) for _ in groups]
        self._blocks = BlockTables(groups, self.pools, asks_store=self.asks_store)

    def run(self, arrivals: Sequence[Arrival], max_steps: int) -> None:
        """Asserts that all of them end within `max_steps`, and that every block is given back."""
        last = max((arrival.step for arrival in arrivals), default=0)
        while len(self.steps) <= last or self._live or self._loading or self._leaving:
            now = len(self.steps)
            assert now < max_steps, f"{len(self._live)} requests not finished after {now} steps"
            for number, arrival in enumerate(arrivals):
                if arrival.step == now:
                    self._add(RequestId(str(number)), arrival)
            self._cancel(now)
            self._answer_loads(now)
            self._answer_demotions(now)
            self._step(now)
        assert all(pool.num_free == self.num_blocks for pool in self.pools)
        assert self.scheduler.num_running == self.scheduler.num_waiting == 0

    def _add(self, request_id: RequestId, arrival: Arrival) -> None:
        request = Request(
            request_id,
            [arrival.seed] * arrival.num_prompt_tokens,
            arrival.num_prompt_tokens,
            SamplingParams(max_tokens=arrival.max_tokens),
            identity_root=bytes(32),
            priority=arrival.priority,
        )
        self._live[request] = arrival
        self.scheduler.add(request)

    def _cancel(self, now: int) -> None:
        for request, arrival in list(self._live.items()):
            after = arrival.cancelled_after_steps
            if after is not None and now >= arrival.step + after:
                self._end(request)

    def _end(self, request: Request) -> None:
        del self._live[request]
        self.scheduler.remove(request)
        self.scheduler.remove(request)
        if not request.loading:
            self._blocks.release(request)

    def _answer_loads(self, now: int) -> None:
        for request in [r for r, due in self._loading.items() if due <= now]:
            del self._loading[request]
            arrival = self._live.get(request)
            brought = arrival.loaded_blocks if arrival else 0
            wanted = len(self._blocks.wanted(request).hashes)
            self._blocks.loaded(request, [TierKind.HOST] * min(brought, wanted))
            if arrival is None:
                self._blocks.release(request)

    def _answer_demotions(self, now: int) -> None:
        for due, runs in self._leaving:
            if due <= now:
                self._blocks.left(runs)
        self._leaving = [(due, runs) for due, runs in self._leaving if due > now]

    def _step(self, now: int) -> None:
        chunks = self.scheduler.schedule(self._blocks)
        preempted = self._blocks.take_preempted()
        self._leaving += [(now + 1 + self.leave_steps, runs) for runs in preempted]
        for request in self._blocks.take_admitted():
            if request.loading:
                self._loading[request] = now + 1 + self._live[request].load_steps
        self._check(chunks)
        self.steps.append(chunks)
        for chunk in chunks:
            self._compute(chunk)

    def _check(self, chunks: Sequence[Chunk]) -> None:
        requests = [chunk.request for chunk in chunks]
        assert sum(chunk.num_tokens for chunk in chunks) <= self.max_batch_tokens
        assert len(set(requests)) == len(requests) <= self.max_running
        assert self.scheduler.num_running <= self.max_running
        assert self.scheduler.num_running + self.scheduler.num_waiting == len(self._live)
        for chunk in chunks:
            request = chunk.request
            assert request in self._live
            assert not request.loading
            assert 1 <= chunk.num_tokens <= request.num_uncomputed
            end = request.num_computed + chunk.num_tokens
            for table in request.block_tables:
                assert table.first <= request.num_named
                assert end <= table.end * self.block_size_tokens
        for number in range(len(self.pools)):
            tables = [(r.num_named, r.block_tables[number]) for r in self._live if r.block_tables]
            own = [block for named, table in tables for block in table.part(named, table.end)]
            assert len(set(own)) == len(own), "two requests write to one block"

    def _compute(self, chunk: Chunk) -> None:
        request = chunk.request
        request.num_computed += chunk.num_tokens
        self._blocks.give_back(self._blocks.complete(request))
        if request.num_uncomputed:
            return
        request.token_ids.append(len(request))
        if request.num_output_tokens >= request.sampling.max_tokens:
            self.finished.append(request.request_id)
            self._end(request)

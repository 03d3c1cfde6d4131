"""Blocks that go to the store while a step computes them, step by step and without a thread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from kvstore.core.ids import RequestId
from model_runner.attention import OnLayer
from model_runner.engine_testing import Counting, Stage, Told
from model_runner.step import ForwardChunk
from model_runner.store_testing import Fate, MemoryStore
from model_runner.types import Request, SamplingParams
from prefill_worker.scheduler import PrefillScheduler

PROMPTS = [[40 * n + 7 * i % 39 for i in range(22)] for n in range(1, 4)]


def request(prompt: Sequence[int]) -> Request:
    sampling = SamplingParams(max_tokens=1, ignore_eos=True)
    name = RequestId(str(prompt[0]))
    return Request(name, list(prompt), len(prompt), sampling, identity_root=bytes(32))


def stage_of(runner: Any, store: MemoryStore, max_batch_tokens: int = 16) -> Stage:
    scheduler = PrefillScheduler(max_batch_tokens=max_batch_tokens, max_running=8)
    return Stage(runner, scheduler, store)


@pytest.mark.parametrize("fate", Fate)
@pytest.mark.parametrize("max_batch_tokens", [7, 66])
def test_every_fate_of_the_store_leaves_the_tokens_as_they_are(
    make_runner: Any, reference: Any, fate: Fate, max_batch_tokens: int
) -> None:
    runner = make_runner()
    store = MemoryStore(runner.groups, runner.caches, fate, delay_steps=2, dies_at_step=2)
    stage = stage_of(runner, store, max_batch_tokens)
    told = [stage.add(request(prompt)) for prompt in PROMPTS]
    stage.run()
    assert [one.tokens for one in told] == [reference(prompt, 1) for prompt in PROMPTS]
    assert stage.all_free
    assert store.num_followed > 0 or fate in (Fate.REFUSES, Fate.BUSY)
    if fate is Fate.FINE:
        assert len(store.kept) == sum(len(prompt) // 4 for prompt in PROMPTS)


def test_what_was_followed_is_what_another_worker_goes_on_with(
    make_runner: Any, reference: Any
) -> None:
    """Each layer was copied when it was told to be there, and not after the step."""
    first, second = make_runner(), make_runner()
    store = MemoryStore(first.groups, first.caches)
    stage = stage_of(first, store)
    stage.add(request(PROMPTS[0]))
    stage.run()
    assert store.num_followed == store.num_offered > 1
    other = stage_of(second, MemoryStore(second.groups, second.caches, kept=store.kept))
    told = other.add(request(PROMPTS[0]))
    other.run()
    assert told.tokens == reference(PROMPTS[0], 1)
    assert other.model.num_computed == 2


class Sick(Counting):
    """Fails in the middle of a step, or computes nothing for prompts that begin with `sick`."""

    fails = False
    sick = -1

    def forward(
        self, chunks: Sequence[ForwardChunk], on_layer: OnLayer | None = None
    ) -> torch.Tensor:
        logits = super().forward(chunks, on_layer).clone()
        if self.fails:
            raise RuntimeError("the device fell off")
        rows = [i for i, chunk in enumerate(chunks) if chunk.token_ids[0] == self.sick]
        logits[rows] = torch.nan
        return logits


def sick_stage(make_runner: Any) -> tuple[Stage, MemoryStore, Sick]:
    runner = make_runner()
    store = MemoryStore(runner.groups, runner.caches, delay_steps=1)
    model = Sick(runner)
    stage = stage_of(model, store, max_batch_tokens=66)
    return stage, store, model


def run(stage: Stage) -> list[Told]:
    told = [stage.add(request(prompt)) for prompt in PROMPTS]
    stage.run()
    return told


def test_of_a_step_that_fails_nothing_is_kept(make_runner: Any, reference: Any) -> None:
    stage, store, model = sick_stage(make_runner)
    model.fails = True
    assert all(one.error for one in run(stage))
    assert store.num_followed > 0
    assert not store.kept
    assert stage.all_free
    model.fails = False
    assert [one.tokens for one in run(stage)] == [reference(prompt, 1) for prompt in PROMPTS]


def test_of_one_that_fails_in_a_step_nothing_is_kept(make_runner: Any, reference: Any) -> None:
    stage, store, model = sick_stage(make_runner)
    model.sick = PROMPTS[1][0]
    good, bad, other = run(stage)
    assert "not finite" in str(bad.error)
    assert [good.tokens, other.tokens] == [reference(PROMPTS[i], 1) for i in (0, 2)]
    assert len(store.kept) == 10
    assert stage.all_free

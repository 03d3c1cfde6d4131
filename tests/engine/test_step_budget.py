"""A device that runs out of memory in a step: smaller steps, and a clear refusal at the end."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from decode_worker.scheduler import DecodeScheduler
from kvstore.core.errors import KVStoreError, ResourceExhaustedError
from kvstore.core.ids import RequestId
from model_runner.engine_testing import Stage
from model_runner.step import ForwardChunk
from model_runner.step_budget import StepBudget, as_too_large
from model_runner.types import Chunk, Request, SamplingParams

CPU_SAYS = "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: ..."


def request(
    prompt: Sequence[int], max_tokens: int = 6, name: str = "r", **sampling: Any
) -> Request:
    params = SamplingParams(max_tokens=max_tokens, ignore_eos=True, **sampling)
    return Request(RequestId(name), list(prompt), len(prompt), params, identity_root=bytes(32))


class Small:
    """A model on a device with memory for so many tokens at a time."""

    def __init__(self, runner: Any, max_tokens: int, error: Exception | None = None) -> None:
        self.max_tokens = max_tokens
        self.error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate ...")
        self.computed: list[int] = []
        self.failed: list[int] = []
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def forward(self, chunks: Sequence[ForwardChunk], *rest: Any) -> torch.Tensor:
        tokens = sum(len(chunk.token_ids) for chunk in chunks)
        if tokens > self.max_tokens:
            self.failed.append(tokens)
            raise self.error
        self.computed.append(tokens)
        logits: torch.Tensor = self._runner.forward(chunks, *rest)
        return logits


def stage_of(model: Any, max_batch_tokens: int = 64) -> Stage:
    return Stage(model, DecodeScheduler(max_batch_tokens=max_batch_tokens, max_running=8))


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), RuntimeError(CPU_SAYS)]
)
def test_a_step_too_large_is_computed_in_parts(
    make_runner: Any, reference: Any, error: Exception
) -> None:
    model = Small(make_runner(), 5, error)
    stage = stage_of(model)
    prompts = [[60 + 20 * i + j for j in range(11)] for i in range(8)]
    told = [stage.add(request(prompt, 6, str(i))) for i, prompt in enumerate(prompts)]
    stage.run()
    assert [one.tokens for one in told] == [reference(prompt, 6) for prompt in prompts]
    assert stage.all_free
    assert model.failed[0] == 64
    assert all(2 * less <= more for more, less in pairwise(model.failed))
    assert max(model.computed) == 5


def test_what_was_too_much_is_tried_again_after_a_while(make_runner: Any) -> None:
    model = Small(make_runner(), 8)
    stage = stage_of(model)
    first = stage.add(request(range(60, 92), 4))
    stage.run()
    assert len(first.tokens) == 4
    assert model.failed == [32, 16]
    model.max_tokens = 64
    waiting = stage.add(request([70, 71, 72], 150, "waiting"))
    stage.run()
    assert len(waiting.tokens) == 150
    stage.add(request(range(200, 250), 4, "whole"))
    stage.run()
    assert max(model.computed) == 50
    assert model.failed == [32, 16]


def test_a_request_too_large_even_alone_is_refused_and_the_others_are_not(
    make_runner: Any, reference: Any
) -> None:
    runner = make_runner()

    class Picky(Small):
        def forward(self, chunks: Sequence[ForwardChunk], *rest: Any) -> torch.Tensor:
            if any(chunk.token_ids[0] == 9 for chunk in chunks):
                raise self.error
            return super().forward(chunks, *rest)

    stage = stage_of(Picky(runner, 64))
    prompts = [[60, 61, 62], [9] * 12, [80, 81, 82, 83, 84]]
    good, bad, fine = (stage.add(request(p, 8, str(i))) for i, p in enumerate(prompts))
    stage.run()
    assert isinstance(bad.error, ResourceExhaustedError)
    assert "ran out of memory" in str(bad.error)
    assert "shorter prompt" in str(bad.error)
    assert [good.tokens, fine.tokens] == [reference(prompts[0], 8), reference(prompts[2], 8)]
    assert stage.all_free
    again = stage.add(request(prompts[0], 8, "again"))
    stage.run()
    assert again.tokens == good.tokens


def test_sampled_tokens_and_logprobs_are_the_same_in_parts(make_runner: Any) -> None:
    params = {"temperature": 1.3, "seed": 5, "top_p": 0.9, "logprobs": 2, "prompt_logprobs": 1}
    told = []
    for room in (64, 3):
        stage = stage_of(Small(make_runner(), room))
        told.append(stage.add(request(range(60, 83), 12, **params)))
        stage.run()
    whole, parts = told
    assert parts.tokens == whole.tokens
    for ours, theirs in (
        (parts.logprobs, whole.logprobs),
        (parts.prompt_logprobs, whole.prompt_logprobs),
    ):
        assert [one.logprob for one in ours] == pytest.approx(
            [one.logprob for one in theirs], abs=1e-4
        )


def test_other_errors_are_not_taken_for_a_lack_of_memory(make_runner: Any) -> None:
    assert as_too_large(RuntimeError("shape mismatch")) is None
    assert as_too_large(ValueError("out of memory")) is None
    model = Small(make_runner(), 4, RuntimeError("the device fell off"))
    stage = stage_of(model)
    told = stage.add(request(range(60, 70)))
    stage.run()
    assert isinstance(told.error, KVStoreError)
    assert model.failed == [10]


@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=12), too_many=st.integers(2, 200))
def test_parts_are_within_the_budget_and_leave_nobody_out(sizes: list[int], too_many: int) -> None:
    chunks = [Chunk(request([1] * size, name=str(i)), size) for i, size in enumerate(sizes)]
    budget = StepBudget()
    assert budget.part(chunks) == chunks
    assert budget.shrink([Chunk(request([1] * too_many), too_many)])
    assert budget.max_tokens == too_many // 2
    waiting, parts = list(chunks), []
    while waiting:
        parts.append(budget.part(waiting))
        del waiting[: len(parts[-1])]
    assert [chunk.request for part in parts for chunk in part] == [c.request for c in chunks]
    for part in parts:
        assert sum(chunk.num_tokens for chunk in part) <= too_many // 2
        assert all(chunk.num_tokens >= 1 for chunk in part)
    for part, following in pairwise(parts):
        assert sum(c.num_tokens for c in [*part, following[0]]) > too_many // 2

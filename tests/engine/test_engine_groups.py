"""Models with sliding windows: the answers of plain `generate`, from no more memory than windows
need."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decode_worker.scheduler import DecodeScheduler
from kvstore.core.ids import RequestId
from kvstore.tiers.base import TierKind
from model_runner.config import WorkerConfig
from model_runner.engine_testing import Stage, Told
from model_runner.families_testing import VOCAB, ClearReference, family_checkpoint
from model_runner.runner import ModelRunner
from model_runner.store_testing import Fate, MemoryStore
from model_runner.types import Blocks, Chunk, FinishReason, Request, SamplingParams
from prefill_worker.scheduler import PrefillScheduler

BLOCK = 4
FAMILIES = ["mistral-sliding", "gemma3-sliding", "gpt-oss-sinks-moe"]
HYBRID = FAMILIES[1:]
NUM_TOKENS = 12


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return family_checkpoint(family, tmp_path_factory.mktemp(family))


@pytest.fixture(scope="module")
def reference(folder: Path) -> ClearReference:
    return ClearReference(folder)


@pytest.fixture(scope="module")
def runner_of(folder: Path) -> Callable[..., ModelRunner]:
    """What a cache holds is of no account to the next core."""
    runners: dict[tuple[tuple[str, int], ...], ModelRunner] = {}

    def make(**sizes: int) -> ModelRunner:
        key = tuple(sorted(sizes.items()))
        if key not in runners:
            config = {
                "model": str(folder),
                "block_size_tokens": BLOCK,
                "device_blocks": 40,
                "threads": 1,
            }
            runners[key] = ModelRunner(WorkerConfig.model_validate(config | sizes))
        return runners[key]

    return make


def prompt(num_tokens: int, seed: int = 0) -> list[int]:
    rng = Random(seed)
    return [rng.randrange(2, VOCAB) for _ in range(num_tokens)]


_numbers = iter(range(1_000_000))


def request(token_ids: Sequence[int], max_tokens: int = NUM_TOKENS, **fields: Any) -> Request:
    sampling = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
    name = RequestId(str(next(_numbers)))
    return Request(
        name, list(token_ids), len(token_ids), sampling, identity_root=bytes(32), **fields
    )


def decoding(max_batch_tokens: int = 16, max_running: int = 8) -> DecodeScheduler:
    return DecodeScheduler(max_batch_tokens=max_batch_tokens, max_running=max_running)


def answers(stage: Stage, *requests: Request) -> list[list[int]]:
    told = [stage.add(one) for one in requests]
    stage.run()
    assert all(one.error is None for one in told)
    assert stage.all_free
    return [one.tokens for one in told]


@pytest.mark.parametrize("chunk_tokens", [1, 3, 4, 5, 11, 64])
def test_groups_any_chunk_size_answers_alike(
    runner_of: Any, reference: ClearReference, chunk_tokens: int
) -> None:
    long = prompt(37)
    stage = Stage(runner_of(), decoding(chunk_tokens))
    assert answers(stage, request(long)) == [reference(long, NUM_TOKENS)]


def test_groups_the_next_turn_needs_the_trailing_blocks_only(
    runner_of: Any, reference: ClearReference
) -> None:
    long = prompt(41)
    stage = Stage(runner_of(), decoding())
    (first,) = answers(stage, request(long))
    before = stage.model.num_computed
    turn = [*long, *first, *prompt(3, seed=1)]
    second = request(turn, 4)
    assert answers(stage, second) == [reference(turn, 4)]
    assert second.hit_tokens == {TierKind.DEVICE: 52}  # 41 + 11 tokens of KV: 13 blocks
    assert stage.model.num_computed - before == len(turn) - 52 + 3


def test_groups_a_prompt_is_found_again_after_its_answer(
    runner_of: Any, reference: ClearReference
) -> None:
    """Its last blocks left the window while the answer was computed."""
    long = prompt(38)
    stage = Stage(runner_of(), decoding())
    again = request(long)
    expected = [reference(long, NUM_TOKENS)]
    assert answers(stage, request(long)) == answers(stage, again) == expected
    assert again.hit_tokens == {TierKind.DEVICE: 36}


def test_groups_memory_is_bounded_by_the_window(
    family: str, runner_of: Any, reference: ClearReference
) -> None:
    """Prompt and answer have 28 blocks; a window, two and a bit."""
    if family in HYBRID:
        runner = runner_of(max_running=1, max_batch_tokens=8)
        assert [cache.num_blocks for cache in runner.caches] == [40, 16]
    else:
        runner = runner_of(device_blocks=5)
        assert [cache.num_blocks for cache in runner.caches] == [5]
    long = prompt(100)
    for scheduler in (decoding(8, 1), PrefillScheduler(max_batch_tokens=8, max_running=1)):
        one = request(long)
        assert answers(Stage(runner, scheduler), one) == [reference(long, NUM_TOKENS)]
        assert one.num_preemptions == 0


def test_groups_several_long_prompts_in_little_memory(
    family: str, runner_of: Any, reference: ClearReference
) -> None:
    sizes = {"device_blocks": 60, "max_running": 4, "max_batch_tokens": 8}
    runner = runner_of(**(sizes if family in HYBRID else {"device_blocks": 12}))
    prompts = [prompt(n, seed=n) for n in (45, 46, 51, 30)]
    expected = [reference(one, NUM_TOKENS) for one in prompts]
    stage = Stage(runner, decoding(8, 4))
    assert answers(stage, *map(request, prompts)) == expected
    for limit in (3, 16):
        prefill = PrefillScheduler(max_batch_tokens=limit, max_running=4)
        assert answers(Stage(runner, prefill), *map(request, prompts)) == expected


class Forcing(DecodeScheduler):
    """Preempts all that run and do not load, at the given step."""

    at_step: int = 0
    now = 0
    num_forced = 0

    def schedule(self, blocks: Blocks) -> Sequence[Chunk]:
        self.now += 1
        if self.now == self.at_step:
            for victim in [one for one in self._queue.running() if not one.loading]:
                self._preempt(victim, blocks)
                self.num_forced += 1
        return super().schedule(blocks)


@pytest.mark.parametrize("store", [None, {"delay_steps": 0}, {"delay_steps": 2}])
def test_groups_preemption_at_every_step_changes_no_output(
    runner_of: Any, reference: ClearReference, store: Mapping[str, int] | None
) -> None:
    long, num_forced = prompt(21, seed=4), 0
    runner = runner_of(device_blocks=9)
    for at_step in range(1, 18, 2):
        scheduler = Forcing(max_batch_tokens=5, max_running=4)
        scheduler.at_step = at_step
        kept = None if store is None else MemoryStore(runner.groups, runner.caches, **store)
        stage = Stage(runner, scheduler, kept)
        assert answers(stage, request(long)) == [reference(long, NUM_TOKENS)]
        num_forced += scheduler.num_forced
    assert num_forced >= 7


@pytest.fixture(scope="module")
def clear_prompts(reference: ClearReference) -> list[list[int]]:
    """Of two streams that begin differently, without those where one step is a close call."""
    lengths = (3, 9, 14, 21, 22, 31)
    prompts = [prompt(31, stream)[:length] for stream in (6, 7) for length in lengths]
    clear = [one for one in prompts if reference.is_clear(one, NUM_TOKENS)]
    assert len(clear) >= 8
    return clear


@dataclass(frozen=True)
class Play:
    """A request to come."""

    step: int
    number: int
    max_tokens: int
    cancelled_after_steps: int | None


_plays = st.lists(
    st.builds(
        Play,
        step=st.integers(0, 10),
        number=st.integers(0, 7),
        max_tokens=st.integers(1, NUM_TOKENS),
        cancelled_after_steps=st.none() | st.integers(0, 12),
    ),
    min_size=2,
    max_size=6,
)
_stores = st.none() | st.builds(
    lambda fate, delay, dies: {"fate": fate, "delay_steps": delay, "dies_at_step": dies},
    st.sampled_from(Fate),
    st.integers(0, 4),
    st.integers(0, 25),
)


@settings(max_examples=10, deadline=None)
@given(_plays, _stores, st.sampled_from([11, 14]), st.integers(2, 12))
def test_groups_random_schedules_answer_as_if_each_were_alone(
    runner_of: Any,
    reference: ClearReference,
    clear_prompts: list[list[int]],
    plays: list[Play],
    store: Mapping[str, Any] | None,
    num_blocks: int,
    max_batch_tokens: int,
) -> None:
    runner = runner_of(device_blocks=num_blocks)
    kept = None if store is None else MemoryStore(runner.groups, runner.caches, **store)
    stage = Stage(runner, decoding(max_batch_tokens, max_running=4), kept)
    requests = [request(clear_prompts[play.number], play.max_tokens) for play in plays]
    told: dict[int, Told] = {}
    for now in range(24):
        for i, play in enumerate(plays):
            if play.step == now:
                told[i] = stage.add(requests[i])
            if play.cancelled_after_steps == now - play.step:
                stage.core.cancel(requests[i].request_id)
        stage.step()
    stage.run()
    for i, play in enumerate(plays):
        expected = reference(clear_prompts[play.number], play.max_tokens)
        cancelled = told[i].ends == [FinishReason.CANCELLED]
        assert told[i].error is None
        assert told[i].tokens == (expected[: len(told[i].tokens)] if cancelled else expected)
        assert not (cancelled and play.cancelled_after_steps is None)
    assert stage.all_free

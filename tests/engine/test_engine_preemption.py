"""Preemption, step by step: an engine's core without its thread, on a device tier too small."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decode_worker.scheduler import DecodeScheduler
from kvstore.core.ids import RequestId
from model_runner.config import WorkerConfig
from model_runner.engine_testing import Stage, Told
from model_runner.runner import ModelRunner
from model_runner.store_testing import Fate, MemoryStore
from model_runner.types import Blocks, Chunk, FinishReason, Request, SamplingParams

BLOCK = 4
PROMPT = [7, 3, 9, 4, 11, 6, 8, 2, 15, 21, 13]
EVERYTHING = SamplingParams(
    temperature=1.4,
    top_p=0.95,
    seed=7,
    max_tokens=12,
    repetition_penalty=1.2,
    presence_penalty=0.4,
    frequency_penalty=0.3,
    min_tokens=8,
    stop_token_ids=frozenset({1, 2, 3}),
    logprobs=2,
    prompt_logprobs=1,
)
PARAMS = {
    "greedy": SamplingParams(max_tokens=12, ignore_eos=True),
    "seeded": EVERYTHING,
    "seeded, prompt not told": replace(EVERYTHING, prompt_logprobs=None),
}


class Forcing(DecodeScheduler):
    """Preempts all that run and do not load, at the given step."""

    at_step: int | None = None
    now = 0
    num_forced = 0

    def schedule(self, blocks: Blocks) -> Sequence[Chunk]:
        self.now += 1
        if self.now == self.at_step:
            for victim in [r for r in self._queue.running() if not r.loading]:
                blocks.preempt(victim)
                self._queue.put_back(victim)
                self.num_forced += 1
        return super().schedule(blocks)


def forcing(max_batch_tokens: int = 8, max_running: int = 8) -> Forcing:
    return Forcing(max_batch_tokens=max_batch_tokens, max_running=max_running)


def request(
    prompt: Sequence[int], sampling: SamplingParams, name: str = "r", **fields: Any
) -> Request:
    return Request(
        RequestId(name), list(prompt), len(prompt), sampling, identity_root=bytes(32), **fields
    )


def alone(make_runner: Any, prompt: Sequence[int], sampling: SamplingParams) -> Told:
    stage = Stage(make_runner(), forcing())
    told = stage.add(request(prompt, sampling))
    stage.run()
    return told


def assert_same(told: Told, expected: Told) -> None:
    """Nothing twice, nothing lost."""
    assert told.tokens == expected.tokens
    assert told.ends == expected.ends
    assert told.num_first == 1
    for ours, theirs in (
        (told.logprobs, expected.logprobs),
        (told.prompt_logprobs, expected.prompt_logprobs),
    ):
        assert [o.top_token_ids for o in ours] == [t.top_token_ids for t in theirs]
        assert [o.logprob for o in ours] == pytest.approx([t.logprob for t in theirs], abs=1e-4)


@pytest.mark.parametrize("with_store", [False, True])
@pytest.mark.parametrize("params", PARAMS.values(), ids=PARAMS.keys())
def test_preemption_at_every_step_changes_no_output(
    make_runner: Any, reference: Any, params: SamplingParams, with_store: bool
) -> None:
    expected = alone(make_runner, PROMPT, params)
    assert len(expected.tokens) >= 8
    if params.temperature == 0:
        assert expected.tokens == reference(PROMPT, 12)
    runner, num_forced = make_runner(device_blocks=7), 0
    for at_step in range(1, 16):
        store = (
            MemoryStore(runner.groups, runner.caches, delay_steps=at_step % 3)
            if with_store
            else None
        )
        scheduler = forcing(max_batch_tokens=3)
        scheduler.at_step = at_step
        stage = Stage(runner, scheduler, store)
        told = stage.add(request(PROMPT, params))
        stage.run()
        assert_same(told, expected)
        assert stage.all_free
        num_forced += scheduler.num_forced
    assert num_forced >= 10


def crowd(params: SamplingParams) -> list[Request]:
    prompts = [[60 + i * 20 + j for j in range(12)] for i in range(4)]
    return [request(prompt, params, str(i)) for i, prompt in enumerate(prompts)]


@pytest.mark.parametrize("delay_steps", [0, 3])
def test_what_the_store_has_is_not_computed_again(make_runner: Any, delay_steps: int) -> None:
    """Of a preempted request, less than a block is."""
    runner = make_runner(device_blocks=14)
    store = MemoryStore(runner.groups, runner.caches, delay_steps=delay_steps)
    stage = Stage(runner, forcing(), store)
    requests = crowd(SamplingParams(max_tokens=20, ignore_eos=True))
    for one in requests:
        stage.add(one)
    stage.run()
    counted = stage.statistics()
    assert counted.preemptions == sum(one.num_preemptions for one in requests) > 0
    assert counted.demoted_blocks > 0
    assert counted.loaded_back_blocks == store.num_fetched > 0
    needed = sum(len(one) - 1 for one in requests)
    assert needed <= stage.model.num_computed <= needed + (BLOCK - 1) * counted.preemptions
    assert stage.all_free


def full_tables(runner: ModelRunner, store: MemoryStore) -> tuple[Stage, list[Request]]:
    """Two requests that fill the device, and the last block of each: none is free, and all that the
    victim has goes to the store before one is."""
    stage = Stage(runner, forcing(max_batch_tokens=32), store)
    requests = crowd(PARAMS["greedy"])[:2]
    for one in requests:
        stage.add(one)
    while len(requests[1]) <= 16:
        stage.step()
    assert stage.core.load().free_blocks == 0
    return stage, requests


def test_blocks_that_the_store_had_not_taken_are_demoted(
    make_runner: Any, runner_of: Callable[[int], ModelRunner]
) -> None:
    """Publication had been refused. The memory of the victim is used again when the store has
    copied it, and not before: another worker goes on with the same tokens."""
    runner = runner_of(8)
    store = MemoryStore(runner.groups, runner.caches, Fate.REFUSES)
    stage, (first, second) = full_tables(runner, store)
    assert not store.kept
    store.fate, store.delay_steps = Fate.FINE, 3
    stage.run()
    assert (first.num_preemptions, second.num_preemptions) == (0, 1)
    assert stage.statistics().demoted_blocks == 4
    assert stage.all_free
    elsewhere = make_runner()
    other = Stage(
        elsewhere, forcing(), MemoryStore(elsewhere.groups, elsewhere.caches, kept=store.kept)
    )
    told = other.add(request(second.token_ids[:16], PARAMS["greedy"]))
    other.run()
    assert other.model.num_computed < 16
    assert told.tokens[:8] == second.token_ids[16:24]


def test_a_store_that_refuses_the_victims_blocks_holds_nobody_up(
    runner_of: Callable[[int], ModelRunner], reference: Any
) -> None:
    runner = runner_of(8)
    stage, requests = full_tables(runner, MemoryStore(runner.groups, runner.caches, Fate.REFUSES))
    stage.run()
    assert [one.num_preemptions for one in requests] == [0, 1]
    assert [one.token_ids[12:] for one in requests] == [
        reference(one.token_ids[:12], 12) for one in requests
    ]
    assert stage.all_free


def test_the_last_in_rank_waits_and_is_preempted(make_runner: Any) -> None:
    """By priority, then by arrival."""
    stage = Stage(make_runner(device_blocks=14), forcing())
    requests = crowd(SamplingParams(max_tokens=20, ignore_eos=True))
    requests[0].priority = -1
    requests[3].priority = 1
    told = {one: stage.add(one) for one in requests}
    finished: list[str] = []
    while stage.step():
        over = [one.request_id for one in requests if told[one].over]
        finished += [name for name in over if name not in finished]
    assert finished == ["3", "1", "2", "0"]
    preempted = {one.request_id: one.num_preemptions for one in requests}
    assert preempted["3"] == 0
    assert preempted["2"] > 0


@dataclass(frozen=True)
class Play:
    """A request to come."""

    step: int
    stream: int
    num_prompt_tokens: int
    max_tokens: int
    priority: int
    sampled: bool
    cancelled_after_steps: int | None

    @property
    def prompt(self) -> list[int]:
        """Those of one stream begin alike."""
        return [(17 + 31 * self.stream + 7 * i) % 250 for i in range(self.num_prompt_tokens)]

    @property
    def sampling(self) -> SamplingParams:
        if self.sampled:
            return replace(EVERYTHING, max_tokens=self.max_tokens, min_tokens=0, seed=self.stream)
        return SamplingParams(max_tokens=self.max_tokens, ignore_eos=True)


_plays = st.lists(
    st.builds(
        Play,
        step=st.integers(0, 12),
        stream=st.integers(0, 1),
        num_prompt_tokens=st.sampled_from([1, 4, 9, 16, 18]),
        max_tokens=st.integers(1, 14),
        priority=st.integers(-1, 1),
        sampled=st.booleans(),
        cancelled_after_steps=st.none() | st.integers(0, 12),
    ),
    min_size=2,
    max_size=7,
)
_stores = st.none() | st.builds(
    lambda fate, delay, dies: {"fate": fate, "delay_steps": delay, "dies_at_step": dies},
    st.sampled_from(Fate),
    st.integers(0, 4),
    st.integers(0, 25),
)


@settings(max_examples=25, deadline=None)
@given(_plays, _stores, st.integers(8, 14), st.integers(2, 12))
def test_random_schedules_answer_as_if_each_were_alone(
    runner_of: Callable[[int], ModelRunner],
    expected: Callable[[Play], list[int]],
    plays: list[Play],
    store: Mapping[str, Any] | None,
    num_blocks: int,
    max_batch_tokens: int,
) -> None:
    runner = runner_of(num_blocks)
    kept = None if store is None else MemoryStore(runner.groups, runner.caches, **store)
    scheduler = forcing(max_batch_tokens, max_running=4)
    stage = Stage(runner, scheduler, kept)
    told: dict[int, Told] = {}
    for now in range(26):
        for i, play in enumerate(plays):
            if play.step == now:
                fields = {"priority": play.priority}
                told[i] = stage.add(request(play.prompt, play.sampling, str(i), **fields))
            if play.cancelled_after_steps == now - play.step:
                stage.core.cancel(RequestId(str(i)))
        stage.step()
    stage.run()
    for i, play in enumerate(plays):
        answer = expected(play)
        cancelled = told[i].ends == [FinishReason.CANCELLED]
        # Who is cancelled after its last token is not told that its blocks are published.
        assert told[i].over or play.cancelled_after_steps is not None
        assert told[i].error is None
        assert len(told[i].ends) == 1
        assert told[i].tokens == (answer[: len(told[i].tokens)] if cancelled else answer)
        assert not (cancelled and play.cancelled_after_steps is None)
    assert stage.all_free
    assert scheduler.num_running == scheduler.num_waiting == 0


@pytest.fixture(scope="module")
def runner_of(checkpoint: Path) -> Callable[[int], ModelRunner]:
    """With so many blocks; what they hold is of no account to the next core."""
    runners: dict[int, ModelRunner] = {}

    def make(num_blocks: int) -> ModelRunner:
        if num_blocks not in runners:
            config = {"model": str(checkpoint), "block_size_tokens": BLOCK}
            runners[num_blocks] = ModelRunner(
                WorkerConfig.model_validate(config | {"device_blocks": num_blocks})
            )
        return runners[num_blocks]

    return make


@pytest.fixture(scope="module")
def expected(
    reference: Any, runner_of: Callable[[int], ModelRunner]
) -> Callable[[Play], list[int]]:
    """What the request answers alone, where there is room: greedy ones, by `generate`."""
    answers: dict[object, list[int]] = {}

    def answer(play: Play) -> list[int]:
        longest = replace(play, step=0, max_tokens=14, priority=0, cancelled_after_steps=None)
        if longest not in answers and play.sampled:
            answers[longest] = alone(lambda: runner_of(64), play.prompt, longest.sampling).tokens
        elif longest not in answers:
            answers[longest] = reference(play.prompt, 14)
        return answers[longest][: play.max_tokens]

    return answer

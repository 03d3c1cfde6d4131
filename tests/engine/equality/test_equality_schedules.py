"""Random schedules: whatever comes when, and is preempted, cancelled, cached or lost by the store,
every answer is that of plain generation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from decode_worker.scheduler import DecodeScheduler
from kvstore.core.ids import RequestId
from model_runner.engine_testing import Stage, Told
from model_runner.runner import ModelRunner
from model_runner.store_testing import Fate, MemoryStore
from model_runner.types import FinishReason, Request, SamplingParams
from prefill_worker.scheduler import PrefillScheduler

from .families import LONG_ANSWER_TOKENS, Family, make_prompt

STEPS = 30
DEVICE_BLOCKS = [12, 16, 24]


@dataclass(frozen=True)
class Play:
    """A request to come, and the turn after it, if it is answered."""

    step: int
    stream: int
    num_prompt_tokens: int
    max_tokens: int
    priority: int
    bypass_cache: bool
    num_handed: int
    """Tokens of the answer that another worker has given."""
    cancelled_after_steps: int | None
    next_turn: bool

    @property
    def prompt(self) -> list[int]:
        """Those of one stream begin alike."""
        return make_prompt(self.num_prompt_tokens, seed=self.stream)


plays = st.lists(
    st.builds(
        Play,
        step=st.integers(0, 12),
        stream=st.integers(0, 1),
        num_prompt_tokens=st.sampled_from([1, 4, 9, 16, 25]),
        max_tokens=st.sampled_from([1, 4, 13]),
        priority=st.integers(-1, 1),
        bypass_cache=st.sampled_from([False, False, False, True]),
        num_handed=st.sampled_from([0, 0, 1, 3]),
        cancelled_after_steps=st.none() | st.integers(0, 12),
        next_turn=st.booleans(),
    ),
    min_size=2,
    max_size=6,
)
stores = st.none() | st.builds(
    lambda fate, delay, dies: {"fate": fate, "delay_steps": delay, "dies_at_step": dies},
    st.sampled_from(Fate),
    st.integers(0, 4),
    st.integers(0, 25),
)


class Theatre:
    """Plays on a stage of one family."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._runners = {size: family.take(size) for size in DEVICE_BLOCKS}

    def close(self) -> None:
        for size, runner in self._runners.items():
            self._family.give_back(size, runner)

    def runner(self, device_blocks: int) -> ModelRunner:
        return self._runners[device_blocks]

    def expected(self, play: Play) -> list[int]:
        assume(self._family.reference.is_clear(play.prompt, LONG_ANSWER_TOKENS))
        return self._family.reference(play.prompt, play.max_tokens)

    def turn_after(self, play: Play) -> tuple[list[int], list[int]]:
        """Its prompt, and the answer."""
        prompt = [*play.prompt, *self.expected(play), 2 + play.stream, 5, 7]
        assume(self._family.reference.is_clear(prompt, 4))
        return prompt, self._family.reference(prompt, 4)


@pytest.fixture(scope="module", params=["llama", "gemma3-sliding", "mistral-sliding"])
def theatre(
    request: pytest.FixtureRequest, family_of: Callable[[str], Family]
) -> Iterator[Theatre]:
    theatre = Theatre(family_of(request.param))
    yield theatre
    theatre.close()


def make_request(name: str, prompt: list[int], output: list[int], **fields: Any) -> Request:
    max_tokens = fields.pop("max_tokens")
    return Request(
        RequestId(name),
        [*prompt, *output],
        len(prompt),
        SamplingParams(max_tokens=max_tokens, ignore_eos=True),
        identity_root=bytes(32),
        **fields,
    )


@settings(max_examples=25, deadline=None)
@given(plays, stores, st.sampled_from(DEVICE_BLOCKS), st.integers(1, 20))
def test_decoding(
    theatre: Theatre,
    plays: list[Play],
    store: Mapping[str, Any] | None,
    device_blocks: int,
    max_batch_tokens: int,
) -> None:
    stage = _stage(theatre.runner(device_blocks), DecodeScheduler, store, max_batch_tokens)
    told = _perform(theatre, stage, plays)
    turns = [
        theatre.turn_after(play)
        for play, one in zip(plays, told, strict=True)
        if play.next_turn and one.ends == [FinishReason.LENGTH]
    ]
    answers = [
        stage.add(make_request(f"turn {n}", prompt, [], max_tokens=4))
        for n, (prompt, _) in enumerate(turns)
    ]
    stage.run()
    assert [one.tokens for one in answers] == [answer for _, answer in turns]
    assert stage.all_free


@settings(max_examples=15, deadline=None)
@given(plays, stores, st.sampled_from(DEVICE_BLOCKS), st.integers(1, 20))
def test_prefilling(
    theatre: Theatre,
    plays: list[Play],
    store: Mapping[str, Any] | None,
    device_blocks: int,
    max_batch_tokens: int,
) -> None:
    """What a prefill worker is given: one token to compute."""
    stage = _stage(theatre.runner(device_blocks), PrefillScheduler, store, max_batch_tokens)
    _perform(theatre, stage, [replace(play, max_tokens=1, num_handed=0) for play in plays])
    assert stage.all_free


def _stage(
    runner: ModelRunner,
    scheduler: type[DecodeScheduler] | type[PrefillScheduler],
    store: Mapping[str, Any] | None,
    max_batch_tokens: int,
) -> Stage:
    kept = None if store is None else MemoryStore(runner.groups, runner.caches, **store)
    return Stage(runner, scheduler(max_batch_tokens=max_batch_tokens, max_running=4), kept)


def _perform(theatre: Theatre, stage: Stage, plays: list[Play]) -> list[Told]:
    expected = [theatre.expected(play) for play in plays]
    told: dict[int, Told] = {}
    for now in range(STEPS):
        for n, play in enumerate(plays):
            if play.step == now:
                told[n] = stage.add(_request(n, play, expected[n]))
            if play.cancelled_after_steps == now - play.step:
                stage.core.cancel(RequestId(str(n)))
        stage.step()
    stage.run()
    for n, play in enumerate(plays):
        _check(play, told[n], expected[n][_num_handed(play) :])
    return [told[n] for n in range(len(plays))]


def _request(n: int, play: Play, expected: list[int]) -> Request:
    return make_request(
        str(n),
        play.prompt,
        expected[: _num_handed(play)],
        max_tokens=play.max_tokens,
        priority=play.priority,
        bypass_cache=play.bypass_cache,
    )


def _num_handed(play: Play) -> int:
    return min(play.num_handed, play.max_tokens - 1)


def _check(play: Play, told: Told, expected: list[int]) -> None:
    assert told.error is None
    assert len(told.ends) == 1
    if told.ends == [FinishReason.CANCELLED]:
        assert play.cancelled_after_steps is not None
        assert told.tokens == expected[: len(told.tokens)]
    else:
        assert told.tokens == expected

"""Samples of one prompt: the same tokens and log probabilities on every path."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from model_runner.sampling.logprobs import TokenLogprobs
from model_runner.types import SamplingParams

from .bench import Answer, Lab
from .families import Family, make_prompt
from .nodes import DEVICE, HOST, Nodes

PROMPT = make_prompt(22)
PARAMS = [
    SamplingParams(
        temperature=1.4,
        top_p=0.95,
        top_k=60,
        seed=seed,
        max_tokens=14,
        ignore_eos=True,
        repetition_penalty=1.2,
        presence_penalty=0.4,
        frequency_penalty=0.3,
        logit_bias={40: 2.0},
        bad_words=((50,), (40, 40)),
        logprobs=2,
    )
    for seed in range(3)
]


@pytest.fixture(params=["llama", "gemma3-sliding"])
def family(request: pytest.FixtureRequest, family_of: Callable[[str], Family]) -> Family:
    return family_of(request.param)


@pytest.fixture
def alone(lab: Lab) -> list[Answer]:
    """Each sample by itself, in an engine without a cache."""
    bench = lab.bench()
    return [bench.ask(PROMPT, sampling=one, bypass_cache=True) for one in PARAMS]


def assert_same(answers: Sequence[Answer], expected: Sequence[Answer]) -> None:
    assert len({tuple(answer.tokens) for answer in expected}) == len(PARAMS)
    for ours, theirs in zip(answers, expected, strict=True):
        assert ours.tokens == theirs.tokens
        assert_same_logprobs(ours.logprobs, theirs.logprobs)


def assert_same_logprobs(ours: Sequence[TokenLogprobs], theirs: Sequence[TokenLogprobs]) -> None:
    assert len(ours) == len(theirs) > 0
    assert [one.top_token_ids for one in ours] == [one.top_token_ids for one in theirs]
    assert [one.logprob for one in ours] == pytest.approx([o.logprob for o in theirs], abs=1e-3)


def test_together_cold_and_from_the_device(lab: Lab, alone: list[Answer]) -> None:
    bench = lab.bench()
    for hits in ({}, {DEVICE: 20}):
        with bench.held():
            answers = [bench.submit(PROMPT, sampling=one) for one in PARAMS]
        assert_same([answer.wait() for answer in answers], alone)
        assert answers[0].hits == hits
        assert answers[2].hits == {DEVICE: 20}


def test_from_the_host(lab: Lab, nodes: Nodes, alone: list[Answer]) -> None:
    lab.bench(nodes.near).ask(PROMPT)
    bench = lab.bench(nodes.near)
    with bench.held():
        answers = [bench.submit(PROMPT, sampling=one) for one in PARAMS]
    assert_same([answer.wait() for answer in answers], alone)
    assert answers[0].hits == {HOST: 20}


@pytest.mark.parametrize("with_store", [False, True])
def test_preempted(lab: Lab, nodes: Nodes, alone: list[Answer], with_store: bool) -> None:
    bench = lab.bench(nodes.near if with_store else None, device_blocks=14)
    with bench.held():
        others = [bench.submit(make_prompt(12, seed=seed), 16) for seed in (20, 21)]
        answers = [bench.submit(PROMPT, sampling=one) for one in PARAMS]
    assert_same([answer.wait() for answer in answers], alone)
    assert [o.wait().tokens for o in others] == [
        lab.reference(make_prompt(12, seed=seed), 16) for seed in (20, 21)
    ]
    assert sum(answer.request.num_preemptions for answer in answers) > 0


@pytest.mark.parametrize("handed", [1, 6])
def test_handed_over(lab: Lab, nodes: Nodes, alone: list[Answer], handed: int) -> None:
    lab.bench(nodes.near).ask(PROMPT)
    bench = lab.bench(nodes.near)
    for one, whole in zip(PARAMS, alone, strict=True):
        rest = bench.ask(PROMPT, sampling=one, output=whole.tokens[:handed])
        assert rest.tokens == whole.tokens[handed:]
        assert_same_logprobs(rest.logprobs, whole.logprobs[handed:])
        assert rest.hit_tokens >= 20


def test_prompt_logprobs_are_told_on_every_path(lab: Lab, nodes: Nodes) -> None:
    """Whatever is cached, the prompt is computed for them; and its blocks serve others."""
    params = replace(PARAMS[0], prompt_logprobs=2)
    bench = lab.bench(nodes.near)
    cold, warm = (bench.ask(PROMPT, sampling=params) for _ in range(2))
    other = lab.bench(nodes.near).ask(PROMPT, sampling=params)
    for answer in (cold, warm, other):
        assert answer.hits == {}
        assert answer.tokens == cold.tokens
        assert_same_logprobs(answer.prompt_logprobs, cold.prompt_logprobs)
        assert len(answer.prompt_logprobs) == len(PROMPT) - 1

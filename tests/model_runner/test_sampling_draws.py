"""Which tokens are drawn, and how often."""

from __future__ import annotations

import math
from collections import Counter
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from model_runner.sampling import draw as drawing
from model_runner.sampling.draw import draw
from model_runner.sampling.probabilities import probabilities, scale
from model_runner.sampling.random_stream import RandomStream, choice_seed
from model_runner.sampling.sampler import InvalidLogitsError, SampledToken, sample
from model_runner.sampling.testing import EOS, at_positions, random_logits, request
from model_runner.types import SamplingParams

GREEDY = SamplingParams()
SETTINGS = [
    SamplingParams(temperature=1.0, seed=1),
    SamplingParams(temperature=0.7, top_k=5, seed=1),
    SamplingParams(temperature=1.3, top_p=0.8, seed=1),
    SamplingParams(temperature=0.9, top_k=12, top_p=0.6, seed=1),
    SamplingParams(temperature=2.0, top_k=1, seed=1),
    SamplingParams(temperature=1.0, top_p=1e-9, seed=1),
    SamplingParams(temperature=1.0, top_k=10**6, seed=1),
    SamplingParams(temperature=1.1, min_p=0.2, seed=1),
    SamplingParams(temperature=0.8, min_p=0.05, top_k=9, top_p=0.9, seed=1),
    SamplingParams(temperature=1.0, min_p=1.0, seed=1),
]

any_settings = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.3, 1.0, 3.0]),
    top_k=st.sampled_from([0, 1, 3, 8, 9, 30, 10**6]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 1e-6]),
    min_p=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
    seed=st.integers(0, 2**64 - 1),
)


def tokens_of(sampled: list[object]) -> list[int]:
    return [one.token_id for one in sampled if isinstance(one, SampledToken)]


def test_greedy_is_the_largest_logit() -> None:
    logits = random_logits(8)
    expected = logits.argmax(-1).tolist()
    assert tokens_of(sample(logits, [request() for _ in range(8)], EOS)) == expected


@pytest.mark.parametrize("params", SETTINGS, ids=str)
def test_probabilities_are_those_of_transformers(params: SamplingParams) -> None:
    """The same warpers in the same order, on the same float64 numbers: the same tokens stay."""
    logits = random_logits(20)
    gaps = scale(logits, [SamplingParams(temperature=1.0)] * 20)
    warpers = LogitsProcessorList([TemperatureLogitsWarper(params.temperature)])
    if params.min_p:
        warpers.append(MinPLogitsWarper(params.min_p))
    if params.top_k:
        warpers.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        warpers.append(TopPLogitsWarper(params.top_p))
    theirs = warpers(torch.zeros(20, 1, dtype=torch.int64), gaps)
    ours = probabilities(logits, [params] * 20)
    assert torch.equal(ours > 0, theirs > -math.inf)
    torch.testing.assert_close(ours, theirs.softmax(-1), rtol=1e-12, atol=0)
    scaled = scale(logits, [params] * 20)
    kept = theirs > -math.inf
    assert torch.equal(scaled[kept], theirs[kept])


@pytest.mark.parametrize("params", [SETTINGS[0], SETTINGS[2], SETTINGS[8]], ids=str)
def test_draws_follow_the_probabilities(params: SamplingParams) -> None:
    """Chi-squared over 4,000 positions, fixed seed: far below the 1e-6 quantile for 19 degrees."""
    logits = random_logits(1, vocab=20)
    expected = probabilities(logits, [params])[0].tolist()
    count = 4000
    stream = RandomStream(7)
    uniforms = [stream.at(position) for position in range(count)]
    drawn = Counter(draw(logits.expand(count, -1), [params] * count, uniforms).tolist())
    possible = {i for i, p in enumerate(expected) if p > 0}
    chi_squared = sum(
        (drawn[i] - count * expected[i]) ** 2 / (count * expected[i]) for i in possible
    )
    assert chi_squared < 68
    assert drawn.keys() <= possible


@settings(deadline=None)
@given(
    params=st.lists(any_settings, min_size=1, max_size=8),
    seed=st.integers(0, 1000),
    flat=st.sampled_from([0.1, 1.0, 3.0]),
    digits=st.sampled_from([None, 0, 1]),
)
def test_few_candidates_draw_what_the_whole_vocabulary_does(
    params: list[SamplingParams], seed: int, flat: float, digits: int | None
) -> None:
    """Whether or not a filter reaches beyond the candidates; with ties, after rounding."""
    logits = flat * random_logits(len(params), vocab=60, seed=seed)
    logits = logits if digits is None else logits.round(decimals=digits)
    uniforms = [RandomStream(seed).at(i) for i in range(len(params))]
    with mock.patch.object(drawing, "CANDIDATES", 8):
        tokens = draw(logits, params, uniforms)
    steps = probabilities(logits, params).cumsum(-1)
    expected = torch.searchsorted(steps, torch.tensor(uniforms, dtype=torch.float64)[:, None])
    assert tokens.tolist() == expected.squeeze(-1).tolist()


@settings(deadline=None)
@given(
    picked=st.lists(any_settings | st.just(GREEDY), min_size=1, max_size=6),
    others=st.lists(any_settings | st.just(GREEDY), max_size=6),
    position=st.integers(1, 200),
)
def test_a_row_draws_the_same_in_any_batch(
    picked: list[SamplingParams], others: list[SamplingParams], position: int
) -> None:
    logits = random_logits(len(picked) + len(others), vocab=1500, seed=position)
    requests = [request(params, [1] * position) for params in [*picked, *others]]
    together = sample(logits.clone(), requests, EOS)
    alone = [sample(logits[i : i + 1], [requests[i]], EOS)[0] for i in range(len(picked))]
    assert together[: len(picked)] == alone


def test_seed_and_position_both_matter_and_the_draw_is_pinned() -> None:
    """These numbers are a contract between workers of different versions."""
    drawn = [RandomStream(0).at(0), RandomStream(0).at(1), RandomStream(1).at(0)]
    assert drawn == [0.5210118731290253, 0.7793183847159253, 0.8687218354721398]


def test_samples_of_one_prompt_have_seeds_of_their_own() -> None:
    seeds = [choice_seed(5, choice) for choice in range(100)]
    assert seeds[0] == 5
    assert len(set(seeds)) == 100
    assert all(0 <= seed < 2**64 for seed in seeds)
    assert choice_seed(6, 1) != seeds[1]


@pytest.mark.parametrize("extreme", [0.0, 1 - 2**-53])
@pytest.mark.parametrize("params", [SETTINGS[0], SETTINGS[8]], ids=["all", "candidates"])
def test_the_ends_of_the_draw_never_pick_an_impossible_token(
    extreme: float, params: SamplingParams
) -> None:
    logits = torch.cat((torch.full((20, 3), -math.inf), random_logits(20)), dim=1)
    logits = torch.cat((logits, torch.full((20, 3), -math.inf)), dim=1)
    tokens = draw(logits, [params] * 20, [extreme] * 20).tolist()
    assert all(logits[i, token] > -math.inf for i, token in enumerate(tokens))


def test_a_temperature_near_zero_is_greedy() -> None:
    logits = random_logits(4)
    expected = logits.argmax(-1).tolist()
    params = SamplingParams(temperature=1e-320, seed=0)
    assert tokens_of(sample(logits, at_positions(params, range(1, 5)), EOS)) == expected


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("params", [GREEDY, *SETTINGS], ids=str)
def test_a_row_that_is_not_finite_fails_alone(bad: float, params: SamplingParams) -> None:
    logits = random_logits(3)
    requests = at_positions(params, [5, 6, 7])
    good = sample(logits.clone(), requests, EOS)
    logits[1, 20] = bad
    tokens = sample(logits, requests, EOS)
    assert isinstance(tokens[1], InvalidLogitsError)
    assert "position 6" in str(tokens[1])
    assert [tokens[0], tokens[2]] == [good[0], good[2]]


def test_a_bad_word_does_not_hide_a_nan() -> None:
    logits = random_logits(1)
    logits[0, 20] = math.nan
    (outcome,) = sample(logits, [request(SamplingParams(bad_words=((20,),)))], EOS)
    assert isinstance(outcome, InvalidLogitsError)


def test_a_row_without_any_token_fails_and_a_masked_vocabulary_does_not() -> None:
    logits = torch.full((2, 4), -math.inf)
    logits[0, 2] = 0.0
    params = SamplingParams(temperature=1.0, top_p=0.9, top_k=3, seed=0)
    outcomes = sample(logits, [request(params), request(params)], EOS)
    assert outcomes[0] == SampledToken(2)
    assert isinstance(outcomes[1], InvalidLogitsError)

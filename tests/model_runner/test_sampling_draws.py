from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from kvstore.core.errors import InvalidArgumentError
from model_runner import sampling
from model_runner.sampling import InvalidLogitsError, probabilities, sample, uniform, validate
from model_runner.types import SamplingParams


def random_logits(rows: int, vocab: int = 50, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))


GREEDY = SamplingParams()
SETTINGS = [
    SamplingParams(temperature=1.0, seed=1),
    SamplingParams(temperature=0.7, top_k=5, seed=1),
    SamplingParams(temperature=1.3, top_p=0.8, seed=1),
    SamplingParams(temperature=0.9, top_k=12, top_p=0.6, seed=1),
    SamplingParams(temperature=2.0, top_k=1, seed=1),
    SamplingParams(temperature=1.0, top_p=1e-9, seed=1),
    SamplingParams(temperature=1.0, top_k=10**6, seed=1),
]


def test_greedy_is_the_largest_logit() -> None:
    logits = random_logits(8)
    assert sample(logits, [GREEDY] * 8, range(8)) == logits.argmax(-1).tolist()


def test_probabilities_are_those_of_transformers() -> None:
    logits = random_logits(len(SETTINGS))
    ours = probabilities(logits, SETTINGS)
    for row, params, mine in zip(logits, SETTINGS, ours, strict=True):
        warpers = LogitsProcessorList([TemperatureLogitsWarper(params.temperature)])
        if params.top_k:
            warpers.append(TopKLogitsWarper(params.top_k))
        if params.top_p < 1:
            warpers.append(TopPLogitsWarper(params.top_p))
        theirs = warpers(torch.zeros(1, 1, dtype=torch.int64), row[None].double())[0].softmax(-1)
        torch.testing.assert_close(mine, theirs)


def test_draws_follow_the_probabilities() -> None:
    """Chi-squared over 4,000 positions, fixed seed: far below the 1e-6 quantile for 7 degrees."""
    params = SamplingParams(temperature=1.0, seed=7)
    logits = random_logits(1, vocab=8)
    expected = probabilities(logits, [params])[0].tolist()
    count = 4000
    drawn = Counter(sample(logits.expand(count, -1), [params] * count, range(count)))
    chi_squared = sum((drawn[i] - count * p) ** 2 / (count * p) for i, p in enumerate(expected))
    assert chi_squared < 40
    assert drawn.keys() <= set(range(8))


@settings(deadline=None)
@given(
    picked=st.lists(st.sampled_from([*SETTINGS, GREEDY]), min_size=1, max_size=6),
    others=st.lists(st.sampled_from([*SETTINGS, GREEDY]), max_size=6),
    position=st.integers(0, 2**31),
)
def test_a_row_draws_the_same_in_any_batch(
    picked: list[SamplingParams], others: list[SamplingParams], position: int
) -> None:
    logits = random_logits(len(picked) + len(others), seed=position % 1000)
    positions = range(position, position + len(logits))
    together = sample(logits, [*picked, *others], positions)
    alone = [
        sample(logits[i : i + 1], [params], [position + i])[0] for i, params in enumerate(picked)
    ]
    assert together[: len(picked)] == alone


def test_seed_and_position_both_matter_and_the_draw_is_pinned() -> None:
    """These numbers are a contract between workers of different versions."""
    drawn = [uniform(0, 0), uniform(0, 1), uniform(1, 0)]
    assert drawn == [0.5210118731290253, 0.7793183847159253, 0.8687218354721398]


@pytest.mark.parametrize("extreme", [0.0, 1 - 2**-53])
def test_the_ends_of_the_draw_never_pick_an_impossible_token(
    extreme: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "uniform", lambda seed, position: extreme)
    logits = torch.cat((torch.full((20, 3), -math.inf), random_logits(20)), dim=1)
    logits = torch.cat((logits, torch.full((20, 3), -math.inf)), dim=1)
    params = SamplingParams(temperature=0.8, seed=0)
    tokens = sample(logits, [params] * 20, range(20))
    assert all(isinstance(t, int) and logits[i, t] > -math.inf for i, t in enumerate(tokens))


def test_a_temperature_near_zero_is_greedy() -> None:
    logits = random_logits(4)
    params = SamplingParams(temperature=1e-320, seed=0)
    assert sample(logits, [params] * 4, range(4)) == logits.argmax(-1).tolist()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("params", [GREEDY, SETTINGS[3]])
def test_a_row_that_is_not_finite_fails_alone(bad: float, params: SamplingParams) -> None:
    logits = random_logits(3)
    good = sample(logits, [params] * 3, [5, 6, 7])
    logits[1, 20] = bad
    tokens = sample(logits, [params] * 3, [5, 6, 7])
    assert isinstance(tokens[1], InvalidLogitsError)
    assert "position 6" in str(tokens[1])
    assert [tokens[0], tokens[2]] == [good[0], good[2]]


def test_a_row_without_any_token_fails_and_a_masked_vocabulary_does_not() -> None:
    logits = torch.full((2, 4), -math.inf)
    logits[0, 2] = 0.0
    params = SamplingParams(temperature=1.0, top_p=0.9, top_k=3, seed=0)
    tokens = sample(logits, [params, params], [0, 0])
    assert tokens[0] == 2
    assert isinstance(tokens[1], InvalidLogitsError)


@pytest.mark.parametrize(
    ("field", "params"),
    [
        ("temperature", SamplingParams(temperature=-0.1)),
        ("temperature", SamplingParams(temperature=math.nan)),
        ("temperature", SamplingParams(temperature=math.inf)),
        ("top_p", SamplingParams(top_p=0.0)),
        ("top_p", SamplingParams(top_p=1.01)),
        ("top_p", SamplingParams(top_p=math.nan)),
        ("top_k", SamplingParams(top_k=-1)),
        ("seed", SamplingParams(seed=-1)),
        ("seed", SamplingParams(seed=2**64)),
        ("max_tokens", SamplingParams(max_tokens=0)),
        ("max_tokens", SamplingParams(max_tokens=101)),
        ("stop_token_ids", SamplingParams(stop_token_ids=frozenset({-1, 3}))),
    ],
)
def test_values_out_of_range_are_refused_by_name(field: str, params: SamplingParams) -> None:
    with pytest.raises(InvalidArgumentError, match=f"^{field} must be"):
        validate(params, max_context_tokens=100)


def test_the_ends_of_the_ranges_are_accepted() -> None:
    validate(SamplingParams(0.0, 1.0, 0, 2**64 - 1, 100, False, frozenset({0})), 100)
    validate(SamplingParams(temperature=1e-3, top_p=1e-6, max_tokens=1), 100)

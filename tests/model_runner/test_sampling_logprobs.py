"""Log probabilities that are told with a token, and what settings are accepted."""

from __future__ import annotations

import math

import pytest
import torch

from kvstore.core.errors import InvalidArgumentError
from model_runner.sampling.sampler import SampledToken, sample
from model_runner.sampling.testing import EOS, random_logits, request
from model_runner.sampling.validate import validate
from model_runner.types import SamplingParams


def test_logprobs_are_of_the_models_own_logits() -> None:
    logits = random_logits(3)
    expected = logits.log_softmax(-1)
    hot = SamplingParams(temperature=2.0, seed=3, logit_bias={7: 100.0}, logprobs=2)
    outcomes = sample(logits, [request(), request(hot), request(SamplingParams(logprobs=0))], EOS)
    plain, biased, own = (one for one in outcomes if isinstance(one, SampledToken))
    assert plain.logprobs is None
    assert biased.token_id == 7
    assert biased.logprobs is not None
    assert biased.logprobs.logprob == float(expected[1, 7])
    assert list(biased.logprobs.top_logprobs) == expected[1].topk(2).values.tolist()
    assert list(biased.logprobs.top_token_ids) == expected[1].topk(2).indices.tolist()
    assert own.logprobs is not None
    assert own.logprobs.logprob == float(expected[2].max())
    assert own.logprobs.top_token_ids == ()


def test_more_logprobs_than_there_are_tokens() -> None:
    (outcome,) = sample(random_logits(1, vocab=3), [request(SamplingParams(logprobs=20))], EOS)
    assert isinstance(outcome, SampledToken)
    assert outcome.logprobs is not None
    assert sorted(outcome.logprobs.top_token_ids) == [0, 1, 2]


def test_a_token_without_a_chance_has_minus_infinity() -> None:
    logits = torch.tensor([[0.0, -math.inf, 0.0]])
    params = SamplingParams(logprobs=3)
    (outcome,) = sample(logits, [request(params)], EOS)
    assert isinstance(outcome, SampledToken)
    assert outcome.logprobs is not None
    assert outcome.logprobs.top_logprobs[-1] == -math.inf


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
        ("min_p", SamplingParams(min_p=-0.1)),
        ("min_p", SamplingParams(min_p=1.1)),
        ("min_p", SamplingParams(min_p=math.nan)),
        ("seed", SamplingParams(seed=-1)),
        ("seed", SamplingParams(seed=2**64)),
        ("repetition_penalty", SamplingParams(repetition_penalty=0.0)),
        ("repetition_penalty", SamplingParams(repetition_penalty=math.nan)),
        ("repetition_penalty", SamplingParams(repetition_penalty=math.inf)),
        ("presence_penalty", SamplingParams(presence_penalty=2.1)),
        ("presence_penalty", SamplingParams(presence_penalty=math.nan)),
        ("frequency_penalty", SamplingParams(frequency_penalty=-2.1)),
        ("logit_bias", SamplingParams(logit_bias={1: 101.0})),
        ("logit_bias", SamplingParams(logit_bias={1: math.nan})),
        ("logit_bias", SamplingParams(logit_bias={200: 1.0})),
        ("logit_bias", SamplingParams(logit_bias=dict.fromkeys(range(1025), 1.0))),
        ("bad_words", SamplingParams(bad_words=((1,), ()))),
        ("bad_words", SamplingParams(bad_words=((1, 200),))),
        ("bad_words", SamplingParams(bad_words=((1,),) * 1025)),
        ("max_tokens", SamplingParams(max_tokens=0)),
        ("max_tokens", SamplingParams(max_tokens=101)),
        ("min_tokens", SamplingParams(min_tokens=-1)),
        ("min_tokens", SamplingParams(min_tokens=17)),
        ("logprobs", SamplingParams(logprobs=21)),
        ("prompt_logprobs", SamplingParams(prompt_logprobs=21)),
        ("stop_token_ids", SamplingParams(stop_token_ids=frozenset({-1, 3}))),
        ("stop_token_ids", SamplingParams(stop_token_ids=frozenset({200}))),
    ],
)
def test_values_out_of_range_are_refused_by_name(field: str, params: SamplingParams) -> None:
    with pytest.raises(InvalidArgumentError, match=f"^{field} must be"):
        validate(params, max_context_tokens=100, vocab_size=200)


def test_the_ends_of_the_ranges_are_accepted() -> None:
    validate(SamplingParams(0.0, 1.0, 0, 2**64 - 1, 100, False, frozenset({0, 199})), 100, 200)
    validate(SamplingParams(temperature=1e-3, top_p=1e-6, max_tokens=1), 100, 200)
    validate(
        SamplingParams(
            min_p=1.0,
            repetition_penalty=1e-3,
            presence_penalty=-2.0,
            frequency_penalty=2.0,
            logit_bias={0: -100.0, 199: 100.0},
            bad_words=((0, 199),),
            min_tokens=16,
            logprobs=20,
            prompt_logprobs=0,
        ),
        100,
        200,
    )

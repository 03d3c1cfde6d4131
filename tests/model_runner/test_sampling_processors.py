"""Bad words, min_tokens, bias and penalties: exactly transformers' own, where it has them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from model_runner.sampling.processors import EditedRow, edit_logits
from model_runner.sampling.sampler import NoTokenLeftError, SampledToken, sample
from model_runner.sampling.state import state_of
from model_runner.sampling.testing import EOS, random_logits, request
from model_runner.types import Request, SamplingParams

VOCAB = 20
tokens = st.integers(0, VOCAB - 1)
words = st.lists(st.tuples(tokens) | st.tuples(tokens, tokens) | st.tuples(*[tokens] * 3))
any_settings = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.7, 1.5]),
    top_p=st.sampled_from([1.0, 0.7]),
    top_k=st.sampled_from([0, 4]),
    min_p=st.sampled_from([0.0, 0.1]),
    seed=st.integers(0, 2**64 - 1),
    stop_token_ids=st.frozensets(tokens, max_size=2),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.8]),
    presence_penalty=st.sampled_from([0.0, 0.6, -1.1]),
    frequency_penalty=st.sampled_from([0.0, 0.3, -0.7]),
    logit_bias=st.dictionaries(tokens, st.floats(-100, 100, width=32), max_size=4),
    bad_words=words.map(tuple),
    min_tokens=st.integers(0, 8),
    ignore_eos=st.booleans(),
    logprobs=st.none() | st.integers(0, 5),
)
any_request = st.builds(
    request,
    any_settings,
    prompt=st.lists(tokens, min_size=1, max_size=12),
    output=st.lists(tokens, max_size=12),
)


def edited(logits: torch.Tensor, *requests: Request) -> torch.Tensor:
    logits = logits.clone()
    rows = [EditedRow(i, r, state_of(r, EOS)) for i, r in enumerate(requests)]
    edit_logits(logits, rows)
    return logits


def theirs(logits: torch.Tensor, one: Request) -> torch.Tensor:
    """The processors of transformers in our order; frequency and presence as OpenAI defines them,
    which transformers does not have."""
    params, output = one.sampling, one.token_ids[one.num_prompt_tokens :]
    chain = LogitsProcessorList()
    if params.bad_words:
        chain.append(NoBadWordsLogitsProcessor([list(w) for w in params.bad_words]))
    stops = sorted(params.stop_token_ids | (frozenset() if params.ignore_eos else EOS))
    if params.min_tokens and stops:
        chain.append(
            MinNewTokensLengthLogitsProcessor(one.num_prompt_tokens, params.min_tokens, stops)
        )
    if params.logit_bias:
        bias = {(token,): value for token, value in params.logit_bias.items()}
        chain.append(SequenceBiasLogitsProcessor(bias))
    if params.repetition_penalty != 1:
        chain.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    row = chain(torch.tensor([one.token_ids]), logits[None])[0]
    for token in set(output):
        row[token] -= params.frequency_penalty * torch.tensor(float(output.count(token)))
        row[token] -= params.presence_penalty
    return row


@settings(deadline=None, max_examples=200)
@given(requests=st.lists(any_request, min_size=1, max_size=6), seed=st.integers(0, 1000))
def test_processed_logits_are_exactly_those_of_transformers(
    requests: list[Request], seed: int
) -> None:
    """Whatever else is in the batch."""
    logits = random_logits(len(requests), VOCAB, seed)
    ours = edited(logits, *requests)
    expected = torch.stack(
        [theirs(row.clone(), one) for row, one in zip(logits, requests, strict=True)]
    )
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)


@settings(deadline=None, max_examples=150)
@given(
    requests=st.lists(any_request, min_size=2, max_size=8),
    seed=st.integers(0, 1000),
    sick=st.sets(st.integers(0, 7)),
)
def test_every_row_is_as_if_it_were_alone(
    requests: list[Request], seed: int, sick: set[int]
) -> None:
    logits = random_logits(len(requests), VOCAB, seed)
    logits[[i for i in sick if i < len(requests)], 3] = math.nan
    together = sample(logits.clone(), requests, EOS)
    for row, one, outcome in zip(logits, requests, together, strict=True):
        (alone,) = sample(row.clone()[None], [replace(one, sampling_state=None)], EOS)
        assert str(alone) == str(outcome)


@settings(deadline=None)
@given(params=any_settings, seed=st.integers(0, 1000), prompt=st.lists(tokens, min_size=1))
def test_a_worker_that_takes_over_goes_on_as_the_first_one(
    params: SamplingParams, seed: int, prompt: list[int]
) -> None:
    """State built up token by token is the state that is made from the whole sequence."""
    params = replace(params, bad_words=params.bad_words[:3])
    logits = random_logits(30, VOCAB, seed)
    one = request(params, prompt)
    for row in logits:
        fresh = replace(one, token_ids=list(one.token_ids), sampling_state=None)
        (here,) = sample(row.clone()[None], [one], EOS)
        (there,) = sample(row.clone()[None], [fresh], EOS)
        assert str(here) == str(there)
        if isinstance(here, SampledToken):
            one.token_ids.append(here.token_id)


def test_rows_without_settings_keep_their_logits() -> None:
    logits = random_logits(3, VOCAB)
    penalised = SamplingParams(repetition_penalty=2.0, logit_bias={3: 5.0})
    before = logits.clone()
    sample(logits, [request(), request(penalised, [4, 5]), request()], EOS)
    assert torch.equal(logits[[0, 2]], before[[0, 2]])
    assert not torch.equal(logits[1], before[1])


def test_repetition_looks_at_the_prompt_and_presence_does_not() -> None:
    logits = torch.ones(2, VOCAB)
    repetition = SamplingParams(repetition_penalty=2.0)
    presence = SamplingParams(presence_penalty=0.5, frequency_penalty=0.25)
    ours = edited(logits, request(repetition, [4], [7, 7]), request(presence, [4], [7, 7]))
    assert ours[0, [4, 7, 8]].tolist() == [0.5, 0.5, 1.0]
    assert ours[1, [4, 7, 8]].tolist() == [1.0, 0.0, 1.0]


def test_a_bad_word_may_begin_in_the_prompt() -> None:
    params = SamplingParams(bad_words=((4, 7, 9), (1, 9), (5,)))
    after = edited(torch.zeros(1, VOCAB), request(params, [3, 4], [7]))[0]
    assert (after == -math.inf).nonzero().squeeze(-1).tolist() == [5, 9]
    elsewhere = edited(torch.zeros(1, VOCAB), request(params, [4], [8]))[0]
    assert (elsewhere == -math.inf).nonzero().squeeze(-1).tolist() == [5]


@pytest.mark.parametrize(
    ("ignore_eos", "held_back"), [(False, [0, 6]), (True, [6])], ids=["eos", "ignored"]
)
def test_nothing_ends_an_answer_before_min_tokens(ignore_eos: bool, held_back: list[int]) -> None:
    params = SamplingParams(
        min_tokens=2, stop_token_ids=frozenset({6}), ignore_eos=ignore_eos, max_tokens=9
    )
    rows = edited(torch.zeros(2, VOCAB), request(params, [1], [1]), request(params, [1], [1, 2]))
    assert (rows[0] == -math.inf).nonzero().squeeze(-1).tolist() == held_back
    assert not rows[1].isinf().any()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_whose_every_token_is_forbidden_fails_alone(temperature: float) -> None:
    every = tuple((token,) for token in range(VOCAB))
    params = SamplingParams(temperature=temperature, seed=1, bad_words=every, logprobs=2)
    logits = random_logits(2, VOCAB)
    best = int(logits[1].argmax())
    outcomes = sample(logits, [request(params), request()], EOS)
    assert isinstance(outcomes[0], NoTokenLeftError)
    assert "leave no token for position 1" in str(outcomes[0])
    assert outcomes[1] == SampledToken(best)


def test_more_distinct_tokens_than_the_first_arrays_hold() -> None:
    params = SamplingParams(repetition_penalty=2.0, frequency_penalty=0.5)
    one = request(params, list(range(150)), [149, 150, 149])
    logits = edited(torch.ones(1, 400), one)[0]
    assert logits[:149].tolist() == [0.5] * 149
    assert logits[[149, 150, 151]].tolist() == [-0.5, 0.0, 1.0]

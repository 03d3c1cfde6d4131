"""Each full block of a prompt that is no hit has one reason."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.core.ids import RequestId
from kvstore.tiers.base import MissReason, TierKind
from model_runner.misses import Miss, missed_blocks, prompt_misses
from model_runner.types import Request, SamplingParams

SIZE = 4


def request(num_tokens: int, **fields) -> Request:
    sampling = fields.pop("sampling", SamplingParams())
    return Request(RequestId("r"), list(range(num_tokens)), num_tokens, sampling, **fields)


def test_the_node_has_a_reason_for_each_that_it_has_for_a_miss() -> None:
    told = dict(enumerate(MissReason))
    reasons = missed_blocks(range(len(told)), told, range(0))
    assert [reason.name for reason in reasons] == [reason.name for reason in MissReason]


def test_what_the_node_said_goes_first() -> None:
    told = {2: MissReason.EVICTED}
    reasons = missed_blocks(range(1, 6), told, range(1, 4))
    assert reasons == [Miss.CHEAPER, Miss.EVICTED, Miss.CHEAPER, Miss.BEHIND, Miss.BEHIND]


@given(st.integers(0, 60), st.integers(0, 20), st.lists(st.sampled_from(Miss), max_size=20))
def test_hits_and_misses_are_all_full_blocks_of_the_prompt(tokens, hits, told) -> None:
    hits = min(hits, max(0, tokens - 1) // SIZE)
    one = request(tokens, hit_tokens={TierKind.HOST: hits * SIZE}, missed_blocks=told)
    misses = prompt_misses(one, SIZE)
    assert sum(misses.values()) + hits == tokens // SIZE
    assert all(count > 0 for count in misses.values())
    in_order = Counter(told[: tokens // SIZE - hits])
    assert all(misses[reason] >= count for reason, count in in_order.items())


@pytest.mark.parametrize(
    ("tokens", "fields", "reasons"),
    [
        (15, {}, {Miss.NO_STORE: 3}),
        (16, {}, {Miss.NO_STORE: 3, Miss.TAIL: 1}),
        (16, {"missed_blocks": [Miss.EVICTED] * 3}, {Miss.EVICTED: 3, Miss.TAIL: 1}),
        (16, {"missed_blocks": [Miss.EVICTED] * 4}, {Miss.EVICTED: 4}),
        (16, {"bypass_cache": True}, {Miss.BYPASSED: 4}),
        (16, {"sampling": SamplingParams(prompt_logprobs=1)}, {Miss.BYPASSED: 4}),
        (3, {"bypass_cache": True}, {}),
        (16, {"hit_tokens": {TierKind.DEVICE: 12}}, {Miss.TAIL: 1}),
    ],
)
def test_reasons(tokens, fields, reasons) -> None:
    assert prompt_misses(request(tokens, **fields), SIZE) == reasons

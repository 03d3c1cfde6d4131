"""Every family, when one engine prefills and another one decodes."""

from __future__ import annotations

import pytest

from .bench import Lab
from .families import ANSWER_TOKENS, make_prompt
from .nodes import DEADLINE_S, HOST, REMOTE, Nodes

LENGTHS = [3, 16, 17, 38]


@pytest.mark.parametrize("length", LENGTHS[1:])
def test_on_one_host(lab: Lab, nodes: Nodes, length: int) -> None:
    prompt, whole = make_prompt(length, seed=length), length // 4 * 4
    prefill, decode = lab.bench(nodes.near, prefill=True), lab.bench(nodes.near)
    first = prefill.ask(prompt, 1)
    rest = decode.ask(prompt, output=first.tokens)
    assert [*first.tokens, *rest.tokens] == lab.reference(prompt, ANSWER_TOKENS)
    assert rest.hits == ({HOST: whole} if whole else {})
    assert decode.computed() == length + ANSWER_TOKENS - 1 - whole


def test_between_hosts(lab: Lab, nodes: Nodes) -> None:
    prompt = make_prompt(38, seed=38)
    prefill, decode = lab.bench(nodes.near, prefill=True), lab.bench(nodes.far)
    first = prefill.ask(prompt, 1)
    nodes.far.wait_for(prefill.keys(prompt), tier=REMOTE)
    rest = decode.ask(prompt, output=first.tokens)
    assert [*first.tokens, *rest.tokens] == lab.reference(prompt, ANSWER_TOKENS)
    assert rest.hit_tokens == 36
    assert REMOTE in rest.hits


def test_of_a_batch_in_small_chunks(lab: Lab, nodes: Nodes) -> None:
    """Several prompts are prefilled at a time, a few tokens of each, and decoded in one batch."""
    prompts = [make_prompt(length, seed=length) for length in LENGTHS]
    prefill = lab.bench(nodes.near, prefill=True, max_batch_tokens=7)
    decode = lab.bench(nodes.near)
    firsts = prefill.ask_together(prompts, max_tokens=1)
    with decode.held():
        answers = [
            decode.submit(prompt, output=first.tokens)
            for prompt, first in zip(prompts, firsts, strict=True)
        ]
    for prompt, first, answer in zip(prompts, firsts, answers, strict=True):
        tokens = [*first.tokens, *answer.wait().tokens]
        assert tokens == lab.reference(prompt, ANSWER_TOKENS)
    assert [answer.hit_tokens for answer in answers] == [0, 16, 16, 36]


def test_before_it_is_complete(lab: Lab, nodes: Nodes) -> None:
    """The first token is told before all blocks are published: what is there by then is right."""
    prompt = make_prompt(38, seed=38)
    prefill, decode = lab.bench(nodes.near, prefill=True), lab.bench(nodes.near)
    first = prefill.submit(prompt, 1)
    assert first.begun.wait(DEADLINE_S)
    rest = decode.ask(prompt, output=first.tokens)
    first.wait()
    assert [*first.tokens, *rest.tokens] == lab.reference(prompt, ANSWER_TOKENS)
    assert rest.hit_tokens <= 36


def test_to_one_that_was_decoding(lab: Lab, nodes: Nodes) -> None:
    """Into a running batch; the hand-off goes on from any token of the answer."""
    prompt, expected = make_prompt(38, seed=38), lab.reference(make_prompt(38, seed=38), 8)
    lab.bench(nodes.near, prefill=True).ask(prompt, 1)
    decode = lab.bench(nodes.near)
    with decode.held():
        answers = [decode.submit(prompt, output=expected[:n]) for n in range(1, 8)]
    for n, answer in enumerate(answers, 1):
        assert answer.wait().tokens == expected[n:]
        assert answer.hit_tokens in (36, 38)  # the rest is in blocks that another one filled

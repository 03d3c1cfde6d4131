"""Every family with several requests at a time: mixed lengths, chunks of all sizes, a device tier
too small for them, priorities, neighbours that leave."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from kvstore.core.ids import RequestId
from model_runner.types import FinishReason

from .bench import Answer, Bench, Lab
from .families import ANSWER_TOKENS, BLOCK, LONG_ANSWER_TOKENS, make_prompt
from .nodes import DEVICE, HOST, Nodes, StoreNode

LENGTHS = [1, 3, 4, 5, 13, 22, 38]
CROWD = [make_prompt(12, seed=seed) for seed in range(20, 24)]


def crowded(lab: Lab, node: StoreNode | None) -> tuple[Bench, list[list[int]]]:
    """An engine, and prompts whose answers its device tier is too small for: blocks for two of
    four. One that keeps a window of them needs few, and more than at first only after a short
    prompt."""
    if lab.family.windows_only:
        return lab.bench(node, device_blocks=6), [prompt[:3] for prompt in CROWD]
    return lab.bench(node, device_blocks=14), CROWD


def assert_answers(lab: Lab, answers: Sequence[Answer], max_tokens: int) -> None:
    for answer in answers:
        prompt = answer.request.token_ids[: answer.request.num_prompt_tokens]
        assert answer.tokens == lab.reference(prompt, max_tokens)


@pytest.mark.parametrize("bypass_cache", [False, True])
def test_mixed_lengths(lab: Lab, nodes: Nodes, bypass_cache: bool) -> None:
    bench = lab.bench(nodes.near, max_batch_tokens=24)
    prompts = [make_prompt(length, seed=length) for length in LENGTHS]
    answers = bench.ask_together(prompts, bypass_cache=bypass_cache)
    assert_answers(lab, answers, ANSWER_TOKENS)
    assert not any(answer.hits for answer in answers)


def test_mixed_hits(lab: Lab, nodes: Nodes) -> None:
    """One batch of requests that have nothing, a part or all of their prompt here or there."""
    lab.bench(nodes.near).ask(make_prompt(38))
    bench = lab.bench(nodes.near, max_batch_tokens=16)
    bench.ask(make_prompt(12, seed=20))
    prompts = [
        make_prompt(38),
        [*make_prompt(22), *make_prompt(7, seed=1)],
        make_prompt(13, seed=13),
        make_prompt(12, seed=20),
    ]
    answers = bench.ask_together(prompts)
    assert_answers(lab, answers, ANSWER_TOKENS)
    assert answers[0].hit_tokens == 36
    assert answers[1].hit_tokens == 20
    assert HOST in answers[0].hits
    assert answers[2].hits == {}
    assert answers[3].hits == {DEVICE: 8}


@pytest.mark.parametrize("hit_tokens", [0, 8])
def test_chunks_of_every_size(lab: Lab, hit_tokens: int) -> None:
    """Up to one for all that is to be computed; cold, and after the hit of its first blocks."""
    prompt, max_tokens = make_prompt(18), 2
    for size in range(1, len(prompt) - hit_tokens + 1):
        bench = lab.bench(max_batch_tokens=size)
        if hit_tokens:
            bench.ask(prompt[: hit_tokens + 1], 1)
        answer = bench.ask(prompt, max_tokens)
        assert answer.tokens == lab.reference(prompt, max_tokens)
        assert answer.hit_tokens == hit_tokens
        lab.close()


@pytest.mark.parametrize("with_store", [False, True])
def test_preempted(lab: Lab, nodes: Nodes, with_store: bool) -> None:
    bench, prompts = crowded(lab, nodes.near if with_store else None)
    answers = bench.ask_together(prompts, max_tokens=LONG_ANSWER_TOKENS)
    assert_answers(lab, answers, LONG_ANSWER_TOKENS)
    counted = bench.engine.statistics()
    assert counted.preemptions == sum(a.request.num_preemptions for a in answers) > 0
    assert (counted.demoted_blocks > 0) == with_store
    load = bench.engine.load()
    assert load.free_blocks == load.total_blocks


def test_preempted_by_priority(lab: Lab, nodes: Nodes) -> None:
    """Who came last goes first, and loses nothing."""
    bench, prompts = crowded(lab, nodes.near)
    with bench.held():
        answers = [
            bench.submit(prompt, LONG_ANSWER_TOKENS, priority=priority)
            for priority, prompt in zip([-1, 0, 0, 1], prompts, strict=True)
        ]
    for answer in answers:
        answer.wait()
    assert_answers(lab, answers, LONG_ANSWER_TOKENS)
    assert answers[3].request.num_preemptions == 0
    assert bench.engine.statistics().preemptions > 0


def test_next_turn_of_a_preempted_request(lab: Lab, nodes: Nodes) -> None:
    """What was demoted, loaded back and computed in pieces is what another worker would have
    computed."""
    bench, prompts = crowded(lab, nodes.near)
    answers = bench.ask_together(prompts, max_tokens=LONG_ANSWER_TOKENS)
    assert bench.engine.statistics().preemptions > 0
    other = lab.bench(nodes.near)
    for answer in answers:
        turn = [*answer.request.token_ids, *make_prompt(3, seed=3)]
        (next_answer,) = other.ask_together([turn])
        assert next_answer.tokens == lab.reference(turn, ANSWER_TOKENS)
        computed = len(answer.request) - 1
        assert next_answer.hits == {HOST: computed // BLOCK * BLOCK}


def test_a_neighbour_that_is_cancelled(lab: Lab, nodes: Nodes) -> None:
    bench = lab.bench(nodes.near)
    prompts = [make_prompt(length, seed=length) for length in LENGTHS[3:]]
    with bench.held():
        answers = [bench.submit(prompt) for prompt in prompts]
        gone = [bench.submit(prompt, 60) for prompt in CROWD]
    for answer in answers:
        answer.wait()
    for answer in gone:
        bench.engine.cancel(RequestId(answer.request.request_id))
        assert answer.over.wait(60)
    assert_answers(lab, answers, ANSWER_TOKENS)
    for answer in gone:
        cancelled = answer.outputs[-1].finish_reason is FinishReason.CANCELLED
        assert cancelled or answer.outputs[-1].published
        prompt = answer.request.token_ids[: answer.request.num_prompt_tokens]
        told = answer.tokens[:LONG_ANSWER_TOKENS]
        assert told == lab.reference(prompt, LONG_ANSWER_TOKENS)[: len(told)]

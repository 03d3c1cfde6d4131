"""Every family by every way that its KV can come: the tokens are those of plain generation, and the
way was really taken."""

from __future__ import annotations

import pytest

from model_runner.load_or_compute import LoadPlanner, Offer

from .bench import Answer, Bench, Lab
from .families import ANSWER_TOKENS, BLOCK, make_prompt
from .nodes import DEVICE, DISK, HOST, REMOTE, Nodes

PROMPT = make_prompt(38)
FULL = 36
"""Tokens of the prompt's full blocks."""
SHARED = PROMPT[:22]
PARTLY = [*SHARED, *make_prompt(11, seed=1)]
"""Shares 22 tokens with it, that is 5 blocks and a half."""
PARTLY_FULL = 20


def assert_answer(lab: Lab, bench: Bench, answer: Answer, **hits: int) -> None:
    """The right tokens; what was not hit was computed, and nothing else."""
    prompt = answer.request.token_ids[: answer.request.num_prompt_tokens]
    assert answer.tokens == lab.reference(prompt, ANSWER_TOKENS)
    assert {tier.name: tokens for tier, tokens in answer.hits.items()} == hits
    assert bench.computed() == len(prompt) + ANSWER_TOKENS - 1 - sum(hits.values())


def assert_found(lab: Lab, bench: Bench, answer: Answer, hit_tokens: int) -> None:
    """In whatever tiers."""
    assert_answer(lab, bench, answer, **{tier.name: n for tier, n in answer.hits.items()})
    assert answer.hit_tokens == hit_tokens


def test_cold(lab: Lab) -> None:
    bench = lab.bench()
    assert_answer(lab, bench, bench.ask(PROMPT))


def test_cold_with_a_store(lab: Lab, nodes: Nodes) -> None:
    bench = lab.bench(nodes.near)
    assert_answer(lab, bench, bench.ask(PROMPT))


@pytest.mark.parametrize("length", [FULL, FULL + 2])
def test_device_hit(lab: Lab, length: int) -> None:
    """Up to the last token, which is computed for its logits."""
    bench, prompt = lab.bench(), PROMPT[:length]
    assert_answer(lab, bench, bench.ask(prompt))
    assert_answer(lab, bench, bench.ask(prompt), DEVICE=FULL if length > FULL else FULL - BLOCK)


def test_host_hit(lab: Lab, nodes: Nodes) -> None:
    lab.bench(nodes.near).ask(PROMPT)
    bench = lab.bench(nodes.near)
    assert_answer(lab, bench, bench.ask(PROMPT), HOST=FULL)
    assert_answer(lab, bench, bench.ask(PROMPT), DEVICE=FULL)


def test_disk_hit(lab: Lab, nodes: Nodes) -> None:
    first, bench = lab.bench(nodes.disk), lab.bench(nodes.disk)
    first.ask(PROMPT)
    keys = first.keys(PROMPT)
    nodes.disk.wait_for(keys, tier=DISK)
    nodes.disk.drop_from_host(keys)
    assert_answer(lab, bench, bench.ask(PROMPT), DISK=FULL)


def test_disk_hit_after_other_blocks_took_the_host_tier(lab: Lab, nodes: Nodes) -> None:
    first, bench = lab.bench(nodes.disk), lab.bench(nodes.disk)
    first.ask(PROMPT)
    nodes.disk.wait_for(first.keys(PROMPT), tier=DISK)
    nodes.disk.fill_host()
    answer = bench.ask(PROMPT)
    assert_found(lab, bench, answer, FULL)
    assert DISK in answer.hits


def test_remote_hit(lab: Lab, nodes: Nodes) -> None:
    first, bench = lab.bench(nodes.near), lab.bench(nodes.far)
    first.ask(PROMPT)
    nodes.far.wait_for(first.keys(PROMPT), tier=REMOTE)
    assert_answer(lab, bench, bench.ask(PROMPT), REMOTE=FULL)
    again = lab.bench(nodes.far)
    assert_answer(lab, again, again.ask(PROMPT), HOST=FULL)


def test_a_chain_from_every_tier(lab: Lab, nodes: Nodes) -> None:
    """The device has the first two blocks, the host the next two, then the disk has the rest."""
    first, bench = lab.bench(nodes.disk), lab.bench(nodes.disk)
    first.ask(PROMPT)
    nodes.disk.wait_for(first.keys(PROMPT), tier=DISK)
    nodes.disk.drop_from_host(first.keys(PROMPT))
    nodes.disk.client.acquire(first.keys(PROMPT[: 4 * BLOCK])[0]).release()
    bench.ask(PROMPT[: 2 * BLOCK])
    bench.computed()
    answer = bench.ask(PROMPT)
    assert_found(lab, bench, answer, FULL)
    # Where there are windows alone, only the last one is loaded: it counts for what precedes it.
    from_host = set() if lab.family.windows_only else {HOST}
    assert set(answer.hits) == {DEVICE, DISK} | from_host


def test_partial_block_hit_on_the_device(lab: Lab) -> None:
    bench = lab.bench()
    assert_answer(lab, bench, bench.ask(PROMPT))
    assert_answer(lab, bench, bench.ask(PARTLY), DEVICE=PARTLY_FULL)
    assert_answer(lab, bench, bench.ask(PROMPT), DEVICE=FULL)


def test_partial_block_hit_in_the_host(lab: Lab, nodes: Nodes) -> None:
    lab.bench(nodes.near).ask(PROMPT)
    bench = lab.bench(nodes.near)
    assert_answer(lab, bench, bench.ask(PARTLY), HOST=PARTLY_FULL)
    assert_answer(lab, bench, bench.ask(PROMPT), DEVICE=PARTLY_FULL, HOST=FULL - PARTLY_FULL)


def test_partial_block_hit_elsewhere(lab: Lab, nodes: Nodes) -> None:
    first, bench = lab.bench(nodes.near), lab.bench(nodes.far)
    first.ask(PROMPT)
    nodes.far.wait_for(first.keys(PROMPT), tier=REMOTE)
    assert_answer(lab, bench, bench.ask(PARTLY), REMOTE=PARTLY_FULL)


class TakesSome(LoadPlanner):
    """Chooses to load so many blocks of what is there."""

    def __init__(self, num_blocks: int) -> None:
        super().__init__(max_step_tokens=64)
        self._num_blocks = num_blocks

    def blocks_to_load(self, offer: Offer, now_s: float) -> int:
        return min(self._num_blocks, len(offer.tiers))


@pytest.mark.parametrize("num_blocks", [0, 5])
def test_any_part_of_a_hit_is_loaded_and_the_rest_computed(
    lab: Lab, nodes: Nodes, num_blocks: int
) -> None:
    lab.bench(nodes.near).ask(PROMPT)
    bench = lab.bench(nodes.near, planner=TakesSome(num_blocks))
    answer = bench.ask(PROMPT)
    assert_found(lab, bench, answer, num_blocks * BLOCK)
    assert set(answer.hits) <= {HOST}


HOLES = [4, FULL // BLOCK - 1]


def assert_hit_before_the_hole(lab: Lab, bench: Bench, answer: Answer, hole: int) -> None:
    """Behind it, only what a model that sees nothing but windows does not need it for."""
    behind = lab.family.windows_only and hole < HOLES[-1] and answer.hit_tokens == FULL
    assert_found(lab, bench, answer, FULL if behind else hole * BLOCK)


@pytest.mark.parametrize("hole", HOLES)
def test_evicted_in_the_middle_of_the_host(lab: Lab, nodes: Nodes, hole: int) -> None:
    first, bench = lab.bench(nodes.near), lab.bench(nodes.near)
    first.ask(PROMPT)
    nodes.near.remove(first.keys_of_block(PROMPT, hole))
    answer = bench.ask(PROMPT)
    assert_hit_before_the_hole(lab, bench, answer, hole)
    assert set(answer.hits) <= {HOST}


def test_evicted_in_the_middle_of_the_disk(lab: Lab, nodes: Nodes) -> None:
    first, bench = lab.bench(nodes.disk), lab.bench(nodes.disk)
    first.ask(PROMPT)
    nodes.disk.wait_for(first.keys(PROMPT), tier=DISK)
    nodes.disk.drop_from_host(first.keys(PROMPT))
    nodes.disk.remove(first.keys_of_block(PROMPT, 4))
    answer = bench.ask(PROMPT)
    assert_hit_before_the_hole(lab, bench, answer, 4)
    assert DISK in answer.hits


def test_evicted_in_the_middle_of_a_peer(lab: Lab, nodes: Nodes) -> None:
    first, bench = lab.bench(nodes.near), lab.bench(nodes.far)
    first.ask(PROMPT)
    nodes.far.wait_for(first.keys(PROMPT), tier=REMOTE)
    nodes.near.remove(first.keys_of_block(PROMPT, 4))
    answer = bench.ask(PROMPT)
    assert_hit_before_the_hole(lab, bench, answer, 4)
    assert REMOTE in answer.hits


def test_evicted_in_the_middle_of_the_device(lab: Lab, nodes: Nodes) -> None:
    """Other requests took some of its blocks: the store brings what is missing."""
    bench = lab.bench(nodes.near, device_blocks=8 if lab.family.windows_only else 18)
    assert_answer(lab, bench, bench.ask(PROMPT))
    bench.ask(make_prompt(48, seed=1), 1)
    bench.computed()
    answer = bench.ask(PROMPT)
    assert_found(lab, bench, answer, FULL)
    assert HOST in answer.hits


def test_next_turn(lab: Lab, nodes: Nodes) -> None:
    """The blocks of the answer serve the next prompt, here and at another worker."""
    bench, other = lab.bench(nodes.near), lab.bench(nodes.near)
    first = bench.ask(PROMPT)
    bench.computed()
    turn = [*PROMPT, *first.tokens, *make_prompt(5, seed=2)]
    known = (len(PROMPT) + ANSWER_TOKENS - 1) // BLOCK * BLOCK
    assert known > FULL
    answer = bench.ask(turn)
    assert_answer(lab, bench, answer, DEVICE=known)
    assert_answer(lab, other, other.ask(turn), HOST=known + BLOCK)


def test_bypassing_what_is_cached(lab: Lab, nodes: Nodes) -> None:
    bench = lab.bench(nodes.near)
    bench.ask(PROMPT)
    published = bench.store.statistics().published_blocks
    bench.computed()
    assert_answer(lab, bench, bench.ask(PROMPT, bypass_cache=True))
    other = lab.bench(nodes.near)
    assert_answer(lab, other, other.ask(PARTLY, bypass_cache=True))
    assert_answer(lab, other, other.ask(PARTLY), HOST=PARTLY_FULL)
    assert bench.store.statistics().published_blocks == published

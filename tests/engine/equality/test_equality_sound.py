"""What the tests of equality rest on: answers vary, and wrong KV changes them."""

from __future__ import annotations

from kvstore.core.ids import BlockKeys

from .bench import Bench, Lab
from .families import ANSWER_TOKENS, BLOCK, make_prompt
from .nodes import HOST, Nodes

PROMPT = make_prompt(38)
OTHER = [PROMPT[0], *make_prompt(37, seed=1)]


def test_answers_vary(lab: Lab) -> None:
    answers = [lab.reference(make_prompt(n, seed=n), ANSWER_TOKENS) for n in (5, 13, 22, 38)]
    assert len({tuple(answer) for answer in answers}) == len(answers)
    assert len({token for answer in answers for token in answer}) >= 8


def test_experts_are_chosen_clearly(lab: Lab) -> None:
    """Two that are nearly as good as each other would be swapped by rounding."""
    tokens = [*PROMPT, *lab.reference(PROMPT, ANSWER_TOKENS)]
    assert lab.reference.routing_margin(tokens) > 1e-4


def test_blocks_of_another_prompt_change_the_answer(lab: Lab, nodes: Nodes) -> None:
    """As if two prompts had one hash: the engine believes the store, and the tests would see it."""
    first, bench = lab.bench(nodes.near), lab.bench(nodes.near)
    first.ask(OTHER)
    forge(nodes, first, OTHER, PROMPT)
    answer = bench.ask(PROMPT)
    assert answer.hits == {HOST: 36}
    assert answer.tokens != lab.reference(PROMPT, ANSWER_TOKENS)


def test_one_block_of_another_prompt_changes_the_answer(lab: Lab, nodes: Nodes) -> None:
    """Where all layers see it."""
    first, bench = lab.bench(nodes.near), lab.bench(nodes.near)
    prompt = [*PROMPT[:-2], 5, 7]
    other = [*PROMPT[: 8 * BLOCK], *OTHER[8 * BLOCK : 9 * BLOCK], 5, 7]
    first.ask(other)
    forge(nodes, first, other, prompt, first_block=8)
    answer = bench.ask(prompt)
    assert answer.hits == {HOST: 36}
    assert answer.tokens != lab.reference(prompt, ANSWER_TOKENS)


def forge(
    nodes: Nodes, bench: Bench, has: list[int], claims: list[int], first_block: int = 0
) -> None:
    """Store the blocks of the prompt `has` under the names of those of `claims`."""
    for real, forged in zip(bench.keys(has), bench.keys(claims), strict=True):
        with nodes.near.client.acquire(real) as lease:
            blocks = [bytes(block.view) for block in lease.found]
        assert len(blocks) == len(real)
        names = BlockKeys(forged.layout, forged.hashes[first_block:])
        stored = nodes.near.client.put(names, blocks[first_block:])
        assert len(stored) == len(names)

"""Families whose layers keep their KV in several groups: when a part of one group's blocks is lost,
what is left is used as far as it goes, and no further."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kvstore.core.ids import BlockKeys

from .bench import Bench, Lab
from .families import ANSWER_TOKENS, BLOCK, Family, make_prompt
from .nodes import HOST, Nodes

PROMPT = make_prompt(38)
NUM_BLOCKS = 9
FULL_ATTENTION, WINDOW = 0, 1


GROUPED = [
    "qwen2-some-layers-sliding",
    "gemma2-softcap-sliding",
    "gemma3-sliding",
    "gpt-oss-sinks-moe",
]


@pytest.fixture(params=GROUPED)
def family(request: pytest.FixtureRequest, family_of: Callable[[str], Family]) -> Family:
    return family_of(request.param)


def test_there_are_two(lab: Lab) -> None:
    full, window = lab.bench().runner.groups
    assert full.window_tokens is None
    assert window.window_tokens == lab.family.window_tokens < len(PROMPT)
    assert sorted([*full.layers, *window.layers]) == [0, 1, 2]


@pytest.mark.parametrize(
    ("group", "lost", "hit_blocks"),
    [
        (FULL_ATTENTION, [0], 0),
        (FULL_ATTENTION, [5], 5),
        (FULL_ATTENTION, [8], 8),
        (WINDOW, [0, 1, 2, 3, 4, 5, 6], 9),  # behind the window of 8 tokens
        (WINDOW, [7], 7),
        (WINDOW, [8], 8),
        (WINDOW, [6, 8], 6),
        (WINDOW, range(NUM_BLOCKS), 0),
    ],
)
def test_lost_in_the_store(
    lab: Lab, nodes: Nodes, group: int, lost: list[int], hit_blocks: int
) -> None:
    first, bench = lab.bench(nodes.near), lab.bench(nodes.near)
    first.ask(PROMPT)
    lose(nodes, first, group, lost)
    answer = bench.ask(PROMPT)
    assert answer.tokens == lab.reference(PROMPT, ANSWER_TOKENS)
    assert answer.hits == ({HOST: hit_blocks * BLOCK} if hit_blocks else {})
    assert bench.computed() == len(PROMPT) + ANSWER_TOKENS - 1 - hit_blocks * BLOCK


@pytest.mark.parametrize("length", [9, 16, 21, 28, 36])
def test_a_prompt_that_ends_anywhere_in_a_longer_one(lab: Lab, nodes: Nodes, length: int) -> None:
    """The window before its end is needed, and there, however much was computed after it."""
    bench, other = lab.bench(nodes.near), lab.bench(nodes.near)
    bench.ask(PROMPT)
    for one in (bench, other):
        answer = one.ask(PROMPT[:length])
        assert answer.tokens == lab.reference(PROMPT[:length], ANSWER_TOKENS)
    assert answer.hits == {HOST: (length - 1) // BLOCK * BLOCK}


def test_windows_evicted_from_the_device(lab: Lab, nodes: Nodes) -> None:
    """Long prompts pass through the windows' few blocks; prompts that were there before find what
    is left, and the store has the rest."""
    bench = lab.bench(nodes.near, device_blocks=24, max_batch_tokens=9)
    prompts = [make_prompt(length, seed=length) for length in (22, 38)]
    for prompt in prompts:
        bench.ask(prompt)
    bench.ask(make_prompt(60, seed=60), 1)
    for prompt in prompts:
        answer = bench.ask(prompt)
        assert answer.tokens == lab.reference(prompt, ANSWER_TOKENS)
        assert answer.hit_tokens == (len(prompt) - 1) // BLOCK * BLOCK


def lose(nodes: Nodes, bench: Bench, group: int, blocks: list[int]) -> None:
    keys = bench.keys(PROMPT)[group]
    nodes.near.remove([BlockKeys(keys.layout, [keys.hashes[block] for block in blocks])])

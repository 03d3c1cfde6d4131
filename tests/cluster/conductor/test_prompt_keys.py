"""Routing keys of prompts: the same whether or not something is remembered."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.conductor import prompt_keys
from cluster.conductor.prompt_keys import STRETCH_BLOCKS, PromptKeys
from cluster.conductor.routing_keys import RoutingKeys
from kvstore.core.errors import InvalidArgumentError
from kvstore.core.hashing import block_hashes
from kvstore.core.ids import routing_key

ROOTS = [bytes([n]) * 32 for n in range(2)]


def expected(root: bytes, tokens: list[int], block_size: int) -> RoutingKeys:
    return RoutingKeys.of_hashes(block_hashes(root, tokens, block_size))


@given(
    st.lists(
        st.tuples(
            st.sampled_from(ROOTS),
            st.integers(0, 4 * STRETCH_BLOCKS),
            st.integers(0, 4 * STRETCH_BLOCKS),
            st.sampled_from([1, 2]),
        ),
        max_size=8,
    ),
    st.integers(1, 4),
)
def test_keys_are_those_of_the_hashes(
    prompts: list[tuple[bytes, int, int, int]], stretches_max: int
) -> None:
    """Prompts share beginnings of all lengths; block sizes and roots are mixed."""
    keys = PromptKeys(stretches_max)
    for root, shared, own, block_size in prompts:
        tokens = [7] * shared + [own] * own
        assert keys.of(root, tokens, block_size) == expected(root, tokens, block_size)


def test_what_is_remembered_is_not_hashed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = []

    def counting(previous, packed, block_size):
        hashed.append(len(packed) // (4 * block_size))
        return hash_blocks(previous, packed, block_size)

    hash_blocks = prompt_keys.hash_blocks
    monkeypatch.setattr(prompt_keys, "hash_blocks", counting)
    keys, first, second = PromptKeys(), list(range(640)), list(range(660))
    keys.of(ROOTS[0], first, 4)
    assert hashed == [32, 32, 32, 32, 32, 0]
    hashed.clear()
    keys.of(ROOTS[0], second, 4)
    assert hashed == [5]
    keys.of(ROOTS[1], second, 4)
    assert sum(hashed) == 5 + 165, "another root shares nothing"


def test_at_the_bound_the_stretch_goes_that_was_not_asked_for_for_longest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys = PromptKeys(stretches_max=2)
    a, b, c = ([n] * STRETCH_BLOCKS for n in range(3))
    for tokens in (a, b, a, c):
        keys.of(ROOTS[0], tokens, 1)
    hashed = []
    monkeypatch.setattr(prompt_keys, "hash_blocks", lambda *call: hashed.append(call) or [])
    keys.of(ROOTS[0], a, 1)
    assert not any(packed for _, packed, _ in hashed), "a was asked for again"
    with pytest.raises(IndexError):
        keys.of(ROOTS[0], b, 1)


def test_several_threads() -> None:
    keys = PromptKeys(stretches_max=3)
    rng = random.Random(0)
    prompts = [[rng.randrange(2)] * STRETCH_BLOCKS * rng.randrange(1, 4) for _ in range(400)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda tokens: keys.of(ROOTS[0], tokens, 1), prompts))
    assert found == [expected(ROOTS[0], tokens, 1) for tokens in prompts]


def test_what_is_no_token_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="token ids must"):
        PromptKeys().of(ROOTS[0], [1, -1], 1)


def test_routing_keys_are_a_sequence_of_their_numbers() -> None:
    hashes = block_hashes(ROOTS[0], list(range(40)), 4)
    keys = RoutingKeys.of_hashes(hashes)
    numbers = [routing_key(block_hash) for block_hash in hashes]
    assert list(keys) == numbers
    assert [keys[place] for place in range(-10, 10)] == numbers + numbers
    assert list(keys[3:7]) == numbers[3:7]
    assert keys == RoutingKeys.of(numbers) != keys[1:]
    assert RoutingKeys.of(keys) is keys
    assert {keys: 1}[RoutingKeys(keys.packed)] == 1
    with pytest.raises(IndexError):
        keys[10]

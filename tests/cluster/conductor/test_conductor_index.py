"""The prefix index against a naive oracle."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.conductor.index import EXPECTED, PrefixIndex, TierBlocks, bits
from cluster.conductor.routing_keys import RoutingKeys
from kvstore.core.hashing import block_hashes
from kvstore.core.identity import ModelIdentity
from kvstore.core.ids import RoutingKey
from kvstore.core.layout import KVLayout
from kvstore.tiers.base import TierKind

WORKERS = {0: 70, 1: 70, 2: 71, 3: None}
"""Slot → slot of its node. Nodes sit beyond 64 bits, where an int has more than one limb."""
NODES = (70, 71, 72)
WORKERS_OF = {70: 0b0011, 71: 0b0100}
TIERS = (EXPECTED, TierKind.DEVICE, TierKind.HOST, TierKind.DISK)


def keys(*numbers: int) -> list[RoutingKey]:
    return [RoutingKey(number) for number in numbers]


@dataclass
class Oracle:
    held: set[tuple[int, int, int]] = field(default_factory=set)
    """(slot, tier, key)"""

    def tier_of(self, worker: int, key: int) -> str | None:
        node = WORKERS[worker]
        if {(worker, EXPECTED, key), (worker, TierKind.DEVICE, key)} & self.held:
            return "device"
        if (node, TierKind.HOST, key) in self.held:
            return "host"
        return "disk" if (node, TierKind.DISK, key) in self.held else None

    def prefix(self, worker: int, prompt: list[RoutingKey]) -> TierBlocks:
        found = TierBlocks()
        for key in prompt:
            tier = self.tier_of(worker, key)
            if tier is None:
                break
            found = found._replace(**{tier: getattr(found, tier) + 1})
        return found

    def on_nodes(self, prompt: list[RoutingKey]) -> int:
        known = {k for _, tier, k in self.held if tier in (TierKind.HOST, TierKind.DISK)}
        return next((i for i, key in enumerate(prompt) if key not in known), len(prompt))


worker_tiers = st.tuples(st.sampled_from(list(WORKERS)), st.sampled_from([0, 1]))
node_tiers = st.tuples(st.sampled_from(NODES), st.sampled_from([2, 3]))
prompts = st.lists(st.integers(0, 9), max_size=12)
runs = st.builds(
    lambda first, n: list(range(first, first + n)), st.integers(0, 9), st.integers(0, 9)
)
operations = st.tuples(
    st.sampled_from(["stored", "stored", "stored", "removed", "cleared", "forget"]),
    worker_tiers | node_tiers,
    prompts | runs,
)


@settings(max_examples=200)
@given(st.lists(operations, max_size=30), prompts | runs, st.integers(0, 15))
def test_equals_the_oracle(
    script: list[tuple[str, tuple[int, int], list[int]]], prompt_numbers: list[int], candidates: int
) -> None:
    index, oracle = PrefixIndex(), Oracle()
    for verb, (slot, tier), numbers in script:
        match verb:
            case "stored":
                index.stored(slot, tier, keys(*numbers))
                oracle.held |= {(slot, tier, n) for n in numbers}
            case "removed":
                index.removed(slot, tier, keys(*numbers))
                oracle.held -= {(slot, tier, n) for n in numbers}
            case "cleared":
                index.cleared(slot, tier)
                oracle.held = {h for h in oracle.held if h[:2] != (slot, tier)}
            case _:
                index.forget(slot)
                oracle.held = {h for h in oracle.held if h[0] != slot}
    prompt = keys(*prompt_numbers)
    found = index.match(prompt, candidates, WORKERS_OF)
    for worker in WORKERS:
        expected = oracle.prefix(worker, prompt) if candidates >> worker & 1 else TierBlocks()
        assert found.prefixes.get(worker, TierBlocks()) == expected
    assert found.on_nodes == oracle.on_nodes(prompt)
    assert all(blocks.total for blocks in found.prefixes.values())
    assert len(index) == len({key for _, _, key in oracle.held})
    for slot in (*WORKERS, *NODES):
        told = sum(1 for s, tier, _ in oracle.held if s == slot and tier != EXPECTED)
        assert index.blocks_of(slot) == told


def test_prefix_ends_at_the_hole_whatever_comes_later() -> None:
    index = PrefixIndex()
    index.stored(0, TierKind.DEVICE, keys(0, 1, 3, 4, 5))
    index.stored(1, TierKind.DEVICE, keys(0, 1, 2, 3))
    found = index.match(keys(0, 1, 2, 3, 4, 5), 0b11, {})
    assert found.prefixes == {0: TierBlocks(2), 1: TierBlocks(4)}
    assert found.on_nodes == 0


def test_a_prefix_may_change_tiers_on_the_way() -> None:
    index = PrefixIndex()
    index.stored(0, TierKind.DEVICE, keys(0, 4))
    index.stored(70, TierKind.HOST, keys(0, 1, 2))
    index.stored(70, TierKind.DISK, keys(1, 2, 3))
    found = index.match(keys(0, 1, 2, 3, 4, 5), 0b11, WORKERS_OF)
    assert found.prefixes == {0: TierBlocks(device=2, host=2, disk=1), 1: TierBlocks(0, 3, 1)}
    assert found.on_nodes == 4


def test_another_nodes_blocks_are_remote_only() -> None:
    index = PrefixIndex()
    index.stored(71, TierKind.HOST, keys(0, 1))
    found = index.match(keys(0, 1, 2), 0b1, WORKERS_OF)
    assert not found.prefixes
    assert found.on_nodes == 2


def test_bits() -> None:
    assert list(bits(0)) == []
    assert list(bits(1 << 1000 | 0b101)) == [0, 2, 1000]


def random_keys(rng: random.Random, count: int) -> list[RoutingKey]:
    return [RoutingKey(rng.getrandbits(64)) for _ in range(count)]


@pytest.mark.parametrize("seed", range(4))
def test_prompts_that_grow_branch_and_are_evicted_in_any_order(seed: int) -> None:
    rng = random.Random(seed)
    index, oracle = PrefixIndex(), Oracle()
    prompts = [random_keys(rng, rng.choice([3, 40, 300])) for _ in range(6)]
    places = [*((w, t) for w in WORKERS for t in (0, 1)), *((n, t) for n in NODES for t in (2, 3))]
    for _ in range(400):
        prompt = rng.choice(prompts)
        slot, tier = rng.choice(places)
        start = rng.choice([0, rng.randrange(len(prompt))])
        part = prompt[start : start + rng.choice([1, 1, 8, 400])]
        match rng.choice(["stored", "stored", "stored", "removed", "evicted", "branch", "forget"]):
            case "stored":
                index.stored(slot, tier, part)
                oracle.held |= {(slot, tier, key) for key in part}
            case "removed":
                index.removed(slot, tier, part[::-1] if rng.random() < 0.5 else part)
                oracle.held -= {(slot, tier, key) for key in part}
            case "evicted":
                gone = [key for s, t, key in sorted(oracle.held) if (s, t) == (slot, tier)]
                gone = rng.sample(gone, len(gone) // 3)
                index.removed(slot, tier, gone)
                oracle.held -= {(slot, tier, key) for key in gone}
            case "branch":
                prompts[rng.randrange(6)] = prompt[: rng.randrange(300)] + random_keys(rng, 5)
            case _ if rng.random() < 0.2:
                index.forget(slot)
                oracle.held = {h for h in oracle.held if h[0] != slot}
        found = index.match(prompt, 0b1111, WORKERS_OF)
        for worker in WORKERS:
            assert found.prefixes.get(worker, TierBlocks()) == oracle.prefix(worker, prompt)
        assert found.on_nodes == oracle.on_nodes(prompt)
    assert len(index) == len({key for _, _, key in oracle.held})
    for slot, tier in places:
        assert index.held(slot, tier) == {k for s, t, k in oracle.held if (s, t) == (slot, tier)}
    for slot in (*WORKERS, *NODES):
        index.forget(slot)
    assert len(index) == 0
    assert not index.runs()


def test_blocks_that_came_one_by_one_are_one_run_once_the_prompt_is_asked_for() -> None:
    index, prompt = PrefixIndex(), random_keys(random.Random(0), 200)
    for key in prompt:
        index.stored(0, TierKind.DEVICE, [key])
    assert len(index.runs()) == 200
    index.stored(1, EXPECTED, prompt)
    assert len(index.runs()) == 1
    assert index.match(prompt, 0b11, {}).prefixes == {0: TierBlocks(200), 1: TierBlocks(200)}
    index.removed(1, EXPECTED, prompt)
    assert index.match(prompt, 0b11, {}).prefixes == {0: TierBlocks(200)}


def test_a_prompt_with_the_same_key_twice() -> None:
    index, prompt = PrefixIndex(), keys(*range(20), *range(20))
    for key in prompt:
        index.stored(0, TierKind.DEVICE, [key])
    index.stored(0, EXPECTED, prompt)
    assert len(index) == 20
    assert index.match(prompt, 1, {}).prefixes == {0: TierBlocks(40)}


def test_beyond_its_bound_the_oldest_blocks_are_forgotten() -> None:
    rng = random.Random(0)
    index, prompts = PrefixIndex(blocks_max=1000), [random_keys(rng, 100) for _ in range(20)]
    for prompt in prompts:
        index.stored(0, TierKind.DEVICE, prompt)
        index.stored(1, TierKind.DEVICE, prompts[0])
    assert len(index) == index.blocks_of(0) == 1000
    assert index.blocks_of(1) == 100
    assert index.shed_blocks == 1000
    kept = [p for p in prompts if index.match(p, 0b11, {}).prefixes]
    assert kept == [prompts[0], *prompts[-9:]]
    index.removed(0, TierKind.DEVICE, prompts[1])
    index.stored(0, TierKind.DEVICE, prompts[2])
    assert index.match(prompts[2], 0b11, {}).prefixes == {0: TierBlocks(100)}
    assert len(index) == 1000


def test_nobody_is_credited_with_blocks_of_another_identity() -> None:
    """432 identities, 186,192 pairs (who holds, who asks), the same tokens for all. Many differ in
    one field alone. Data-parallel ranks share an identity, and are workers of their own."""
    layout, everybody = KVLayout(2, 2, 8, 16, "float32"), (1 << 2 * 432) - 1
    pool = ["w1", "w2"], ["{}", '{"rope":1}'], ["raw", "fp8:1", "fp8:2"]
    prompt_pool = ["", "x", "y"], ["", "i", "j"], ["", "a", "b", "ab"]
    roots = {
        ModelIdentity(weights, form, layout, *rest).root()
        for weights, form, *rest in itertools.product(*pool, *prompt_pool)
    }
    assert len(roots) == 432
    prompts = [RoutingKeys.of_hashes(block_hashes(root, list(range(64)), 16)) for root in roots]
    index = PrefixIndex()
    for number, prompt in enumerate(prompts):
        index.stored(2 * number, TierKind.DEVICE, prompt)
        index.stored(2 * number + 1, TierKind.DEVICE, prompt[:2])
    for number, prompt in enumerate(prompts):
        found = index.match(prompt, everybody, {})
        assert found.prefixes == {2 * number: TierBlocks(4), 2 * number + 1: TierBlocks(2)}

"""The prefix index against a naive oracle."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.conductor.index import EXPECTED, Match, PrefixIndex, TierBlocks, bits
from kvstore.core.ids import RoutingKey
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
    assert found == Match({0: TierBlocks(2), 1: TierBlocks(4)}, 0)


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
    assert found == Match({}, 2)


def test_bits() -> None:
    assert list(bits(0)) == []
    assert list(bits(1 << 1000 | 0b101)) == [0, 2, 1000]

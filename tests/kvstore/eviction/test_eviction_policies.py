"""What every eviction policy must do, on random trees of chains; and what each is for."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.core.errors import InvalidArgumentError
from kvstore.core.ports import Clock
from kvstore.eviction import registry
from kvstore.eviction.base import EvictionPolicy
from kvstore.eviction.cost_aware import CostAware
from kvstore.eviction.lru import LRU
from kvstore.eviction.prefix_closed import PrefixClosed
from kvstore.eviction.replay import Access, Belady, leading_hits, replay
from kvstore.eviction.retention import Retention

POLICIES: dict[str, Callable[[Clock], EvictionPolicy]] = {
    **registry.POLICIES,
    "retention": lambda clock: Retention(LRU, clock),
}


def chain(*branches: int) -> list[tuple[int, ...]]:
    """A key is the path to it, so that its parent is known: (), (b1,), (b1, b2)..."""
    return [tuple(branches[: i + 1]) for i in range(len(branches))]


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("access"), st.lists(st.integers(0, 2), min_size=1, max_size=6)),
        st.tuples(st.just("evict"), st.integers(1, 6)),
        st.tuples(st.just("pinned evict"), st.integers(1, 6)),
        st.tuples(st.just("wait"), st.integers(1, 60)),
    ),
    max_size=60,
)


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=60, deadline=None)
@given(operations=OPERATIONS)
def test_victims_are_resident_evictable_and_leave_no_hole(name, operations):
    now_s = 0.0
    policy = POLICIES[name](lambda: now_s)
    resident: set[tuple[int, ...]] = set()
    for verb, argument in operations:
        match verb:
            case "access":
                keys = chain(*argument)
                new = [key for key in keys if key not in resident]
                policy.touch(keys)
                policy.insert(new)
                resident.update(new)
            case "wait":
                now_s += argument
            case _:
                pinned = {k for k in resident if verb == "pinned evict" and k[-1] == 0}
                victims = policy.victims(argument, lambda key, pinned=pinned: key not in pinned)
                assert len(victims) == len(set(victims)) <= argument
                assert set(victims) <= resident - pinned
                if not pinned:
                    assert len(victims) == min(argument, len(resident))
                resident -= set(victims)
        assert len(policy) == len(resident)
    if name not in ("lru", "retention") or all(verb != "pinned evict" for verb, _ in operations):
        assert all(len(key) == 1 or key[:-1] in resident for key in resident)


@pytest.mark.parametrize("name", POLICIES)
def test_removed_keys_are_never_victims(name):
    policy = POLICIES[name](lambda: 0.0)
    keys = chain(1, 2, 3, 4)
    policy.touch(keys)
    policy.insert(keys)
    policy.remove(keys[2:])
    assert set(policy.victims(9, lambda key: True)) == set(keys[:2])
    assert len(policy) == 0


def requests(chains: list[list[int]], every_s: float = 1.0) -> list[Access]:
    return [Access(i * every_s, 16 * len(blocks), blocks) for i, blocks in enumerate(chains)]


def conversations(seed: int, count: int, faithful_share: float) -> list[Access]:
    """Users who come once, and users who come back every half minute."""
    rng = random.Random(seed)
    arrivals = []
    for user in range(count):
        turns = 12 if rng.random() < faithful_share else 1
        start_s = rng.uniform(0, 4000)
        for turn in range(turns):
            blocks = [user * 1000 + i for i in range(8 + 2 * turn)]
            arrivals.append(Access(start_s + 30 * turn, 16 * len(blocks), blocks))
    return sorted(arrivals, key=lambda access: access.time_s)


def rate(accesses, name, capacity):
    make = POLICIES.get(name) or (lambda clock: Belady(accesses))
    return replay(accesses, make, capacity_blocks=capacity, block_tokens=16).ratio


def test_learned_keeps_those_who_come_back():
    accesses = conversations(seed=1, count=1500, faithful_share=0.15)
    lru, s3fifo, learned = (rate(accesses, name, 300) for name in ("lru", "s3fifo", "learned"))
    assert learned > 2 * max(lru, s3fifo)


def test_learned_survives_a_loop_that_defeats_lru():
    accesses = requests([[i % 150 * 10 + j for j in range(8)] for i in range(3000)])
    assert rate(accesses, "lru", 400) == 0
    assert rate(accesses, "learned", 400) > 0.2


def test_adaptive_follows_the_better_policy():
    rng = random.Random(2)
    heads = [min(int(rng.paretovariate(0.5)), 400) for _ in range(3000)]
    accesses = requests(
        [
            [h * 100 + j for j in range(10)] + [10**6 + i * 10 + j for j in range(6)]
            for i, h in enumerate(heads)
        ],
        every_s=0.3,
    )
    rates = {name: rate(accesses, name, 2000) for name in ("lru", "learned", "s3fifo", "adaptive")}
    assert rates["adaptive"] >= 0.9 * max(rates.values()), rates


def test_arc_and_s3fifo_resist_a_scan():
    hot = [list(range(5)), list(range(10, 15))]
    scan = [[1000 + 10 * i + j for j in range(8)] for i in range(40)]
    accesses = requests([*hot * 3, *[c for i, s in enumerate(scan) for c in (s, hot[i % 2])]])
    lru = rate(accesses, "lru", 16)
    assert rate(accesses, "s3fifo", 16) > lru
    assert rate(accesses, "arc", 16) > lru


def test_cost_aware_keeps_what_is_dear():
    policy = PrefixClosed(CostAware(lambda position: 1 + position))
    shallow, deep = [("s", 0)], [("d", i) for i in range(5)]
    for keys in (deep, shallow):
        policy.touch(keys)
        policy.insert(keys)
    assert policy.victims(1, lambda key: True) == shallow


def test_retention_goes_by_priority_until_it_ends():
    now_s = 0.0
    policy = Retention(LRU, lambda: now_s)
    for key in "abc":
        policy.insert([key])
    policy.retain(["a"], priority=90, duration_s=60)
    policy.retain(["c"], priority=10, duration_s=None)
    assert policy.victims(2, lambda key: True) == ["c", "b"]
    policy.insert(["d"])
    now_s = 61.0
    assert policy.victims(1, lambda key: True) == ["d"], "a came back to the default line last"


@pytest.mark.parametrize(("priority", "duration_s"), [(101, 1.0), (-1, 1.0), (50, 0.0)])
def test_retention_refuses_what_makes_no_sense(priority, duration_s):
    with pytest.raises(InvalidArgumentError):
        Retention(LRU, lambda: 0.0).retain(["a"], priority, duration_s)


def test_belady_knows_what_lru_cannot():
    accesses = requests([[10 * (i % 3), 10 * (i % 3) + 1] for i in range(30)])
    assert rate(accesses, "lru", 4) == 0
    assert rate(accesses, "belady", 4) > 0.4


def test_leading_hits_stop_at_the_first_hole():
    assert leading_hits([1, 2, 3], {1, 3}) == 1
    assert leading_hits([1, 2], {1, 2}) == 2
    assert leading_hits([], set()) == 0

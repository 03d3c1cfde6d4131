"""The choice between loading and computing: what it learns, and that it is never a bad one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.tiers.base import TierKind
from model_runner.load_or_compute import (
    TIE_S,
    EngineBacklog,
    LoadPlanner,
    Offer,
    StepWork,
)
from model_runner.tier_cost import Rate, TierCost

HOST, DISK, REMOTE = TierKind.HOST, TierKind.DISK, TierKind.REMOTE
MIB = 1 << 20


def offer(tiers: Sequence[TierKind], **changes: int) -> Offer:
    """Of a prompt that ends a few tokens after the blocks offered."""
    made = Offer(tiers, block_bytes=MIB, block_size_tokens=16, first_block=0, num_tokens=0)
    return replace(made, **({"num_tokens": len(tiers) * 16 + 5} | changes))


def planner(token_s: float = 1e-3, step_s: float = 0.0) -> LoadPlanner:
    """One that has learned what a token costs here."""
    made = LoadPlanner(max_step_tokens=512)
    for number in range(60):
        tokens = 64 * (1 + number % 8)
        made.observe_step(StepWork(tokens, 0.0), step_s + tokens * token_s)
    return made


def loads(
    made: LoadPlanner, tier: TierKind, latency_s: float, s_per_gb: float, now_s: float = 0.0
) -> None:
    for number in range(12):
        length = (1 + number % 4) * 64 * MIB
        made.observe_load({tier: length}, latency_s + s_per_gb * length / 1e9, now_s)


def test_everything_is_loaded_before_anything_is_known() -> None:
    made = LoadPlanner(max_step_tokens=512)
    for tier in (HOST, DISK, REMOTE):
        assert made.blocks_to_load(offer([tier] * 100), 0.0) == 100
    assert made.blocks_to_load(offer([]), 0.0) == 0


def test_what_is_slower_than_computing_is_computed_and_counted() -> None:
    made = planner()
    loads(made, DISK, 0.01, 100.0)
    assert made.blocks_to_load(offer([DISK] * 100), 0.0) == 0
    assert made.blocks_to_load(offer([HOST] * 100), 0.0) == 100
    assert made.statistics(0.0).recomputed_blocks == {DISK: 100}


def test_the_fast_beginning_of_a_prefix_is_loaded_and_its_slow_end_computed() -> None:
    made = planner()
    loads(made, REMOTE, 0.5, 100.0)
    assert made.blocks_to_load(offer([HOST] * 60 + [REMOTE] * 40), 0.0) == 60


def test_a_slow_start_pays_where_much_is_saved_by_it() -> None:
    """Latency and bandwidth are told apart: half a second, once, is worth 1,600 tokens."""
    made = planner()
    loads(made, REMOTE, 0.5, 0.1)
    assert made.blocks_to_load(offer([REMOTE] * 100), 0.0) == 100
    assert made.blocks_to_load(offer([REMOTE] * 10), 0.0) == 0


def test_long_prompts_attend_to_more_and_are_loaded_sooner() -> None:
    made = LoadPlanner(max_step_tokens=512)
    for number in range(80):
        tokens, start = 512, 512 * (number % 16)
        pairs = tokens * (start + tokens / 2)
        made.observe_step(StepWork(tokens, pairs), tokens * 1e-5 + pairs * 1e-7)
    loads(made, REMOTE, 0.01, 10.0)
    blocks = [REMOTE] * 100
    assert made.blocks_to_load(offer(blocks, num_tokens=1_605), 0.0) < 10
    later = offer(blocks, first_block=400, num_tokens=500 * 16 + 5)
    assert made.blocks_to_load(later, 0.0) == 100


def test_a_load_is_free_while_others_are_computed_first() -> None:
    made = planner()
    loads(made, REMOTE, 0.0, 20.0)
    wanted = offer([REMOTE] * 100)
    assert made.blocks_to_load(wanted, 0.0) < 10
    made.backlog = EngineBacklog(prompt_tokens=4_000)
    assert made.blocks_to_load(wanted, 0.0) == 100


def test_computing_is_slower_beside_many_that_decode() -> None:
    made = planner(token_s=1e-4, step_s=0.05)
    loads(made, REMOTE, 0.3, 0.1)
    wanted = offer([REMOTE] * 64)
    assert made.blocks_to_load(wanted, 0.0) == 0
    made.backlog = EngineBacklog(decoding=448)
    assert made.blocks_to_load(wanted, 0.0) == 64


def test_a_tier_that_was_slow_is_tried_again_and_found_fast_at_once() -> None:
    made = planner()
    loads(made, DISK, 2.0, 100.0)
    wanted = offer([DISK] * 100)
    assert made.blocks_to_load(wanted, 1.0) == 0
    now_s = next(t for t in range(1, 600) if made.blocks_to_load(wanted, float(t)) == 100)
    assert now_s > 20
    made.observe_load({DISK: 100 * MIB}, 5.0, now_s)
    assert made.blocks_to_load(wanted, now_s) == 0
    again_s = next(t for t in range(now_s, 900) if made.blocks_to_load(wanted, float(t)) == 100)
    assert again_s > now_s + 10
    made.observe_load({DISK: 100 * MIB}, 0.1, again_s)
    for later_s in range(again_s, again_s + 100):
        assert made.blocks_to_load(wanted, float(later_s)) == 100


def test_one_slow_load_is_an_accident() -> None:
    made = planner(token_s=1e-4)
    loads(made, HOST, 0.001, 0.2)
    made.observe_load({HOST: MIB}, 3.0, 0.0)
    assert made.blocks_to_load(offer([HOST] * 10), 0.0) == 10


def test_of_two_tiers_in_one_load_each_answers_for_its_part() -> None:
    made = planner()
    loads(made, HOST, 0.001, 0.2)
    for _ in range(12):
        made.observe_load({HOST: 64 * MIB, DISK: 64 * MIB}, 4.0, 0.0)
        loads(made, HOST, 0.001, 0.2)
    rates = made.statistics(0.0).rates
    assert rates[DISK].predict_s(64 * MIB) == pytest.approx(4.0, rel=0.3)
    assert rates[HOST].predict_s(64 * MIB) < 0.1


@given(
    latency_s=st.floats(1e-4, 5.0),
    s_per_gb=st.floats(0.01, 500.0),
    sizes=st.lists(st.integers(1, 10_000), min_size=10, max_size=30, unique=True),
)
def test_a_rate_is_found_from_loads_of_many_sizes(
    latency_s: float, s_per_gb: float, sizes: list[int]
) -> None:
    """But for what is left of the prior."""
    prior, real = Rate(0.001, 1.0), Rate(latency_s, s_per_gb)
    cost = TierCost(prior)
    for size in sizes:
        cost.observe(size << 16, real.predict_s(size << 16), 0.0)
    for size in sizes[-3:]:
        predicted_s, real_s = cost.rate(0.0).predict_s(size << 16), real.predict_s(size << 16)
        assert abs(predicted_s - real_s) < 0.4 * real_s + 0.2 * prior.predict_s(size << 16)


@given(st.lists(st.tuples(st.integers(1, 1 << 33), st.floats(0, 1e4)), min_size=1, max_size=40))
def test_a_rate_is_never_negative_nor_infinite(observed: list[tuple[int, float]]) -> None:
    cost = TierCost(Rate(0.001, 1.0))
    for number, (length, seconds) in enumerate(observed):
        cost.observe(length, seconds, float(number))
        rate = cost.rate(number + 0.5)
        assert 0 <= rate.latency_s < 1e9
        assert 0 <= rate.s_per_gb < 1e15


TIERS = st.lists(st.sampled_from([HOST, DISK, REMOTE]), min_size=1, max_size=40)


@given(
    tiers=TIERS,
    first_block=st.integers(0, 50),
    rest=st.integers(1, 200),
    observed=st.lists(
        st.tuples(
            st.sampled_from([HOST, DISK, REMOTE]), st.integers(1, 1 << 30), st.floats(1e-5, 60.0)
        ),
        max_size=20,
    ),
    token_s=st.floats(1e-6, 0.1),
    backlog=st.builds(EngineBacklog, st.integers(0, 600), st.integers(0, 10_000)),
)
def test_never_worse_than_loading_all_or_computing_all(
    tiers: list[TierKind],
    first_block: int,
    rest: int,
    observed: list[tuple[TierKind, int, float]],
    token_s: float,
    backlog: EngineBacklog,
) -> None:
    """By its own beliefs, which are asked for k blocks by offering no more than these."""
    made = planner(token_s)
    for tier, length, seconds in observed:
        made.observe_load({tier: length}, seconds, 0.0)
    made.backlog = backlog
    wanted = Offer(tiers, MIB, 16, first_block, (first_block + len(tiers)) * 16 + rest)
    seconds_of = made._seconds(wanted, 0.0)
    chosen = made.blocks_to_load(wanted, 0.0)
    assert seconds_of[chosen] <= seconds_of.min() + TIE_S
    assert seconds_of[chosen] <= min(seconds_of[0], seconds_of[-1]) + TIE_S
    assert all(seconds_of[chosen + 1 :] > seconds_of.min() + TIE_S)

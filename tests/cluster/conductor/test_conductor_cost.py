"""The cost model: it converges, follows change, and ranks right."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.conductor.cost import CostModel, LoadWork, PrefillWork, WorkerCost
from cluster.conductor.queue import Backlog
from cluster.conductor.regression import LinearModel


def true_prefill_s(work: PrefillWork, speed: float = 1.0) -> float:
    constant, tokens, pairs = work.features
    return (0.02 * constant + 0.5 * tokens + 0.08 * pairs) / speed


def some_work(rng: random.Random) -> PrefillWork:
    prompt = rng.randint(16, 8000)
    return PrefillWork(rng.randint(1, prompt), prompt)


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_prefill_converges(noise: float) -> None:
    rng = random.Random(1)
    cost = WorkerCost(CostModel())
    for _ in range(200):
        work = some_work(rng)
        cost.observe_prefill(work, true_prefill_s(work) * rng.uniform(1 - noise, 1 + noise))
    errors = [
        abs(cost.prefill.predict(work.features) / true_prefill_s(work) - 1)
        for work in (some_work(rng) for _ in range(100))
    ]
    assert max(errors) < 0.01 + noise
    assert sum(errors) / len(errors) < 0.01 + noise / 2


def test_follows_a_worker_that_becomes_slower() -> None:
    rng = random.Random(2)
    cost = WorkerCost(CostModel())
    for speed in (1.0, 0.4):
        for _ in range(400):
            work = some_work(rng)
            cost.observe_prefill(work, true_prefill_s(work, speed))
    work = PrefillWork(2000, 4000)
    assert cost.prefill.predict(work.features) == pytest.approx(true_prefill_s(work, 0.4), rel=0.05)


def test_ranks_workers_and_work_right() -> None:
    rng = random.Random(3)
    fleet = CostModel()
    slow, fast = WorkerCost(fleet), WorkerCost(fleet)
    for _ in range(30):
        for cost, speed in ((slow, 1.0), (fast, 1.5)):
            work = some_work(rng)
            observed = true_prefill_s(work, speed) * rng.uniform(0.95, 1.05)
            cost.observe_prefill(work, observed)
    for _ in range(50):
        work = some_work(rng)
        assert fast.prefill.predict(work.features) < slow.prefill.predict(work.features)
        half = PrefillWork(max(1, work.computed_tokens // 2), work.prompt_tokens)
        assert slow.prefill.predict(half.features) <= slow.prefill.predict(work.features)


def test_new_worker_is_judged_by_the_others() -> None:
    rng = random.Random(4)
    fleet = CostModel()
    known, new = WorkerCost(fleet), WorkerCost(fleet)
    for _ in range(100):
        work = some_work(rng)
        known.observe_prefill(work, true_prefill_s(work))
    work = PrefillWork(1000, 3000)
    assert new.prefill.predict(work.features) == pytest.approx(true_prefill_s(work), rel=0.02)
    for _ in range(40):
        work = some_work(rng)
        new.observe_prefill(work, true_prefill_s(work, 2.0))
    work = PrefillWork(1000, 3000)
    assert new.prefill.predict(work.features) == pytest.approx(true_prefill_s(work, 2.0), rel=0.05)


def test_load_bandwidth_of_each_tier_is_told_apart() -> None:
    rng = random.Random(5)
    cost = WorkerCost(CostModel())
    for _ in range(100):
        host, disk = rng.randint(0, 10**9), rng.choice([0, rng.randint(0, 10**9)])
        cost.observe_load(LoadWork(host, disk), 0.003 + host / 8e9 + disk / 1e9)
    assert cost.load.predict(LoadWork(0, 0).features) == pytest.approx(0.003, abs=5e-4)
    assert cost.load.predict(LoadWork(10**9, 0).features) == pytest.approx(0.128, rel=0.05)
    assert cost.load.predict(LoadWork(0, 10**9).features) == pytest.approx(1.003, rel=0.05)


def test_time_between_tokens_grows_with_the_batch() -> None:
    cost = WorkerCost(CostModel())
    for batch in (1, 4, 8, 2, 16, 8, 1, 32) * 5:
        cost.observe_itl(batch, 0.01 + 0.0005 * batch)
    assert cost.itl.predict((1.0, 24.0)) == pytest.approx(0.022, rel=0.02)


@settings(max_examples=100)
@given(
    st.lists(
        st.tuples(
            st.integers(1, 10**6), st.integers(0, 10**6), st.floats(0, 1e6, allow_subnormal=False)
        ),
        max_size=100,
    )
)
def test_predictions_stay_finite_and_not_negative(
    observations: list[tuple[int, int, float]],
) -> None:
    cost = WorkerCost(CostModel())
    for computed, before, seconds in observations:
        work = PrefillWork(computed, computed + before)
        cost.observe_prefill(work, seconds)
        assert 0 <= cost.prefill.predict(work.features) < 1e12
        assert 0 <= cost.prefill.predict(PrefillWork(1, 1).features) < 1e12


def test_what_is_never_observed_does_not_blow_up() -> None:
    model = LinearModel((1.0, 1.0))
    for _ in range(5000):
        model.observe((1.0, 0.0), 3.0)
    model.observe((1.0, 1.0), 5.0)
    model.observe((1.0, 2.0), 7.0)
    assert model.predict((1.0, 4.0)) == pytest.approx(11.0, rel=0.05)
    assert model.observations == 5002


def test_backlog_is_worked_off_by_time() -> None:
    backlog = Backlog()
    backlog.add(10.0, 0.5)
    backlog.add(10.1, 0.25)
    assert backlog.waiting_s(10.1) == pytest.approx(0.65)
    assert backlog.waiting_s(10.5) == pytest.approx(0.25)
    assert backlog.waiting_s(20.0) == 0
    backlog.add(20.0, 0.5)
    assert backlog.waiting_s(20.0) == pytest.approx(0.5)


def test_idle_worker_ends_a_backlog_that_was_predicted_too_long() -> None:
    backlog = Backlog()
    backlog.add(10.0, 60.0)
    backlog.idle(10.2)  # the request may not have arrived there yet
    assert backlog.waiting_s(10.2) > 59
    backlog.idle(11.5)
    assert backlog.waiting_s(11.5) == 0

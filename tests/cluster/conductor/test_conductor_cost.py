"""The cost model: it converges, follows change, and ranks right."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.conductor.columns import STALL_MEMORY_S, Columns, Field
from cluster.conductor.cost import DecodeWork, FleetCost, LoadWork, PrefillWork
from cluster.conductor.past import Past
from cluster.conductor.prediction_error import PredictionError
from kvstore.core.regression import LinearModel

Work = PrefillWork | LoadWork | DecodeWork


class Workers:
    """A fleet of so many."""

    def __init__(self, count: int = 1) -> None:
        self.columns = Columns()
        self.fleet = FleetCost(self.columns)
        for slot in range(count):
            self.columns.clear(slot)
            self.fleet.add(slot)

    def __getitem__(self, slot: int) -> Worker:
        return Worker(self.fleet, slot)


class Worker:
    def __init__(self, fleet: FleetCost, slot: int) -> None:
        self._fleet = fleet
        self._slot = slot

    def observe(self, work: Work, seconds: float) -> None:
        self._fleet.observe(self._slot, work, seconds)

    def predict(self, work: Work) -> float:
        return self._fleet.predict(self._slot, work)


def true_prefill_s(work: PrefillWork, speed: float = 1.0) -> float:
    constant, tokens, pairs = work.features
    return (0.02 * constant + 0.5 * tokens + 0.08 * pairs) / speed


def some_work(rng: random.Random) -> PrefillWork:
    prompt = rng.randint(16, 8000)
    return PrefillWork(rng.randint(1, prompt), prompt)


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_prefill_converges(noise: float) -> None:
    rng = random.Random(1)
    worker = Workers()[0]
    for _ in range(200):
        work = some_work(rng)
        worker.observe(work, true_prefill_s(work) * rng.uniform(1 - noise, 1 + noise))
    errors = [
        abs(worker.predict(work) / true_prefill_s(work) - 1)
        for work in (some_work(rng) for _ in range(100))
    ]
    assert max(errors) < 0.01 + noise
    assert sum(errors) / len(errors) < 0.01 + noise / 2


def test_follows_a_worker_that_becomes_slower() -> None:
    rng = random.Random(2)
    worker = Workers()[0]
    for speed in (1.0, 0.4):
        for _ in range(400):
            work = some_work(rng)
            worker.observe(work, true_prefill_s(work, speed))
    work = PrefillWork(2000, 4000)
    assert worker.predict(work) == pytest.approx(true_prefill_s(work, 0.4), rel=0.05)


def test_ranks_workers_and_work_right() -> None:
    rng = random.Random(3)
    workers = Workers(2)
    slow, fast = workers[0], workers[1]
    for _ in range(30):
        for worker, speed in ((slow, 1.0), (fast, 1.5)):
            work = some_work(rng)
            worker.observe(work, true_prefill_s(work, speed) * rng.uniform(0.95, 1.05))
    for _ in range(50):
        work = some_work(rng)
        assert fast.predict(work) < slow.predict(work)
        half = PrefillWork(max(1, work.computed_tokens // 2), work.prompt_tokens)
        assert slow.predict(half) <= slow.predict(work)


def test_new_worker_is_judged_by_the_others() -> None:
    rng = random.Random(4)
    workers = Workers(2)
    known, new = workers[0], workers[1]
    for _ in range(100):
        work = some_work(rng)
        known.observe(work, true_prefill_s(work))
    work = PrefillWork(1000, 3000)
    assert new.predict(work) == pytest.approx(true_prefill_s(work), rel=0.02)
    for _ in range(40):
        work = some_work(rng)
        new.observe(work, true_prefill_s(work, 2.0))
    work = PrefillWork(1000, 3000)
    assert new.predict(work) == pytest.approx(true_prefill_s(work, 2.0), rel=0.05)
    assert known.predict(work) == pytest.approx(true_prefill_s(work), rel=0.02)


def test_predictions_are_those_of_the_columns() -> None:
    """What is learned, of one worker or of all, is in the columns at once, in single units."""
    workers = Workers(3)
    for slot, work, seconds in (
        (0, PrefillWork(1000, 3000), 0.7),
        (1, LoadWork(10**8, 10**7, 10**6), 0.3),
        (2, DecodeWork(20, 1e5), 0.05),
    ):
        workers[slot].observe(work, seconds)
    for slot in range(3):
        c = workers.columns.values[:, slot]
        prefill = c[Field.PREFILL_S] + 500 * c[Field.PREFILL_TOKEN_S]
        prefill += 500 * (900 - 250) * c[Field.PREFILL_PAIR_S]
        assert workers[slot].predict(PrefillWork(500, 900)) == pytest.approx(prefill)
        load = c[Field.LOAD_S] + 10**7 * c[Field.LOAD_HOST_BYTE_S]
        load += 10**6 * c[Field.LOAD_DISK_BYTE_S] + c[Field.PULL_S] + 10**5 * c[Field.PULL_BYTE_S]
        assert workers[slot].predict(LoadWork(10**7, 10**6, 10**5)) == pytest.approx(load)
        step = c[Field.STEP_S] + 7 * c[Field.STEP_SEQUENCE_S] + 9e4 * c[Field.STEP_TOKEN_S]
        assert workers[slot].predict(DecodeWork(7, 9e4)) == pytest.approx(step)


def test_who_left_is_forgotten() -> None:
    workers = Workers(2)
    workers[0].observe(PrefillWork(1000, 1000), 50.0)
    workers.fleet.remove(0)
    before = workers.columns.values.copy()
    workers[1].observe(PrefillWork(1000, 1000), 1.0)
    assert (workers.columns.values[:, 0] == before[:, 0]).all()


def test_load_bandwidth_of_each_tier_is_told_apart() -> None:
    rng = random.Random(5)
    worker = Workers()[0]
    for _ in range(100):
        host, disk = rng.randint(0, 10**9), rng.choice([0, rng.randint(0, 10**9)])
        worker.observe(LoadWork(host, disk), 0.003 + host / 8e9 + disk / 1e9)
    assert worker.predict(LoadWork()) == pytest.approx(0.003, abs=5e-4)
    assert worker.predict(LoadWork(host_bytes=10**9)) == pytest.approx(0.128, rel=0.05)
    assert worker.predict(LoadWork(disk_bytes=10**9)) == pytest.approx(1.003, rel=0.05)


def test_network_is_told_apart_from_the_way_there() -> None:
    rng = random.Random(6)
    worker = Workers()[0]
    for _ in range(100):
        remote = rng.choice([0, rng.randint(1, 10**9)])
        seconds = 0.002 + (0.01 + remote / 5e9 if remote else 0.0)
        worker.observe(LoadWork(remote_bytes=remote), seconds)
    assert worker.predict(LoadWork()) == pytest.approx(0.002, rel=0.05)
    assert worker.predict(LoadWork(remote_bytes=10**9)) == pytest.approx(0.212, rel=0.05)


def test_time_between_tokens_grows_with_batch_and_memory() -> None:
    rng = random.Random(7)
    worker = Workers()[0]
    for _ in range(100):
        sequences, tokens = rng.randint(1, 40), rng.randint(0, 400_000)
        worker.observe(DecodeWork(sequences, tokens), 0.01 + 0.0005 * sequences + tokens * 5e-8)
    assert worker.predict(DecodeWork(24, 0)) == pytest.approx(0.022, rel=0.02)
    assert worker.predict(DecodeWork(1, 200_000)) == pytest.approx(0.0205, rel=0.02)


sizes = st.integers(0, 10**12)
works = st.one_of(
    st.builds(lambda n, before: PrefillWork(n, n + before), st.integers(1, 10**6), sizes),
    st.builds(LoadWork, sizes, sizes, sizes),
    st.builds(DecodeWork, st.floats(0, 1e4), st.floats(0, 1e9)),
)


@settings(max_examples=100)
@given(st.lists(st.tuples(works, st.floats(0, 1e6, allow_subnormal=False)), max_size=100))
def test_predictions_stay_finite_and_not_negative(
    observations: list[tuple[Work, float]],
) -> None:
    worker = Workers()[0]
    for work, seconds in observations:
        worker.observe(work, seconds)
        assert 0 <= worker.predict(work) < 1e15
        assert 0 <= worker.predict(PrefillWork(1, 1)) < 1e12


@settings(max_examples=50)
@given(st.integers(0, 2**32), st.floats(-0.9, 10))
def test_a_single_surprise_does_not_turn_the_model_over(seed: int, share: float) -> None:
    """The first step of a process, a stopped machine: one observation of many."""
    rng = random.Random(seed)
    worker = Workers()[0]
    for _ in range(50):
        work = some_work(rng)
        worker.observe(work, true_prefill_s(work))
    surprising = some_work(rng)
    worker.observe(surprising, true_prefill_s(surprising) * (1 + share))
    work = PrefillWork(2000, 4000)
    assert worker.predict(work) == pytest.approx(true_prefill_s(work), rel=0.7)


def test_what_is_never_observed_does_not_blow_up() -> None:
    model = LinearModel((1.0, 1.0))
    for _ in range(5000):
        model.observe((1.0, 0.0), 3.0)
    model.observe((1.0, 1.0), 5.0)
    model.observe((1.0, 2.0), 7.0)
    assert model.predict((1.0, 4.0)) == pytest.approx(11.0, rel=0.05)
    assert model.observations == 5002


def busy_s(columns: Columns, now_s: float) -> float:
    return max(0.0, float(columns.values[Field.BUSY_UNTIL_S, 0]) - now_s)


def test_backlog_is_worked_off_by_time() -> None:
    columns = Columns()
    columns.clear(0)
    columns.give(0, 10.0, 0.5)
    columns.give(0, 10.1, 0.25)
    assert busy_s(columns, 10.1) == pytest.approx(0.65)
    assert busy_s(columns, 10.5) == pytest.approx(0.25)
    assert busy_s(columns, 20.0) == 0
    columns.give(0, 20.0, 0.5)
    assert busy_s(columns, 20.0) == pytest.approx(0.5)


def test_report_ends_a_backlog_that_was_predicted_too_long() -> None:
    columns = Columns()
    columns.clear(0)
    columns.give(0, 10.0, 60.0)
    columns.report(0, 10.2, 0, 0.0)  # the request may not have arrived there yet
    assert busy_s(columns, 10.2) > 59
    columns.report(0, 11.5, 1, 3.0)
    assert busy_s(columns, 11.5) == pytest.approx(3.0)


def test_report_lengthens_a_backlog_at_once() -> None:
    columns = Columns()
    columns.clear(0)
    columns.give(0, 10.0, 0.1)
    columns.report(0, 10.0, 9, 7.0)
    assert busy_s(columns, 10.0) == pytest.approx(7.0)
    columns.give(0, 10.0, 0.5)
    assert busy_s(columns, 10.0) == pytest.approx(7.5)


def test_share_of_time_on_prompts_is_remembered_for_a_while() -> None:
    columns = Columns()
    columns.clear(0)
    for second in range(1000):
        columns.give(0, float(second), 0.3)
    share = columns.values[Field.STALL_S, 0] / STALL_MEMORY_S
    assert share == pytest.approx(0.3, rel=0.06)


def test_columns_grow_with_the_slots_and_begin_anew() -> None:
    columns = Columns()
    for slot in (0, 5, 300):
        columns.clear(slot)
    columns.give(300, 1.0, 2.0)
    assert columns.values[Field.ROUTED, 300] == 1
    columns.clear(300)
    assert columns.values[Field.ROUTED, 300] == 0


def test_past_gives_means_between_two_moments() -> None:
    past = Past()
    past.advance(10.0)
    past.count(2, 1000.0)
    before = past.at(20.0)
    past.count(2, 500.0)
    after = past.at(30.0)
    past.count(-4, -1500.0)
    passed_s = after.at_s - before.at_s
    assert (after.sequences_dt - before.sequences_dt) / passed_s == 4
    assert (after.tokens_dt - before.tokens_dt) / passed_s == 1500
    assert past.at(40.0).sequences_dt == after.sequences_dt


def test_prediction_error_is_a_moving_mean() -> None:
    error = PredictionError()
    assert error.mean == 0
    for _ in range(100):
        error.judge(1.5, 1.0)
    assert error.mean == pytest.approx(0.5)
    for _ in range(60):
        error.judge(1.0, 1.0)
    assert error.mean < 0.01

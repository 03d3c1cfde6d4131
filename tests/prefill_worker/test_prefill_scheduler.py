"""The prefill scheduler: pure, so that whole runs are played without a model."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from kvstore.core.ids import RequestId
from model_runner.testing import Arrival, SchedulerSimulation, blocks_needed, window_group
from prefill_worker.scheduler import PrefillScheduler

_BLOCK = 4


def _simulation(
    num_blocks: int = 64,
    max_batch_tokens: int = 16,
    max_running: int = 4,
    asks_store: bool = False,
) -> SchedulerSimulation:
    scheduler = PrefillScheduler(max_batch_tokens=max_batch_tokens, max_running=max_running)
    return SchedulerSimulation(
        scheduler, num_blocks, _BLOCK, max_batch_tokens, max_running, asks_store
    )


_arrivals = st.lists(
    st.builds(
        Arrival,
        step=st.integers(0, 12),
        num_prompt_tokens=st.integers(1, 32),
        max_tokens=st.just(1),
        seed=st.integers(0, 3),
        load_steps=st.integers(0, 3),
        loaded_blocks=st.integers(0, 8),
        cancelled_after_steps=st.none() | st.integers(0, 6),
        priority=st.integers(-1, 1),
    ),
    max_size=16,
)


@given(_arrivals, st.integers(9, 24), st.integers(1, 20), st.integers(1, 5), st.booleans())
def test_prefill_every_request_finishes_within_budget_and_blocks(
    arrivals: list[Arrival],
    num_blocks: int,
    max_batch_tokens: int,
    max_running: int,
    asks_store: bool,
) -> None:
    simulation = _simulation(num_blocks, max_batch_tokens, max_running, asks_store)
    tokens = sum(arrival.num_prompt_tokens for arrival in arrivals)
    simulation.run(arrivals, max_steps=20 + tokens + 5 * len(arrivals))
    kept = sum(arrival.cancelled_after_steps is None for arrival in arrivals)
    assert len(simulation.finished) >= kept


@given(
    _arrivals,
    st.lists(st.none() | st.integers(1, 14), min_size=1, max_size=2),
    st.integers(0, 4),
    st.integers(1, 30),
    st.integers(2, 5),
    st.booleans(),
)
def test_prefill_with_windows_every_request_finishes_in_the_least_room(
    arrivals: list[Arrival],
    windows: list[int | None],
    more_blocks: int,
    max_batch_tokens: int,
    max_running: int,
    asks_store: bool,
) -> None:
    groups = [window_group(window, _BLOCK) for window in windows]
    longest = max((one.num_prompt_tokens + one.max_tokens for one in arrivals), default=1)
    simulation = _simulation(
        blocks_needed(groups, longest) + more_blocks, max_batch_tokens, max_running, asks_store
    )
    simulation = replace(simulation, groups=groups)
    tokens = sum(arrival.num_prompt_tokens for arrival in arrivals)
    simulation.run(arrivals, max_steps=20 + tokens + 5 * len(arrivals))
    kept = sum(arrival.cancelled_after_steps is None for arrival in arrivals)
    assert len(simulation.finished) >= kept


def test_prefill_short_prompts_overtake_long_ones() -> None:
    simulation = _simulation(max_batch_tokens=16)
    simulation.run([Arrival(0, 60, 1, seed=1), Arrival(0, 5, 1, seed=2)], max_steps=20)
    assert simulation.finished == ["1", "0"]


def test_prefill_a_long_prompt_is_not_starved_by_short_ones() -> None:
    simulation = _simulation(max_batch_tokens=16, max_running=1)
    stream = [Arrival(step, 15, 1, seed=step) for step in range(200)]
    simulation.run([Arrival(0, 64, 1, seed=999), *stream], max_steps=1000)
    assert simulation.finished.index(RequestId("0")) < 40


def test_prefill_several_prompts_share_a_step_and_a_long_one_is_chunked() -> None:
    simulation = _simulation(max_batch_tokens=16)
    simulation.run([Arrival(0, n, 1, seed=n) for n in (5, 6, 20)], max_steps=10)
    shapes = [[(c.request.request_id, c.num_tokens) for c in step] for step in simulation.steps]
    assert shapes == [[("0", 5), ("1", 6), ("2", 5)], [("2", 15)]]


def test_prefill_one_that_lacks_room_is_waited_for() -> None:
    simulation = _simulation(num_blocks=8, max_batch_tokens=4)
    big_first = [Arrival(0, 24, 1, seed=1), Arrival(1, 30, 1, seed=2), Arrival(9, 24, 1, seed=3)]
    simulation.run(big_first, max_steps=60)
    assert simulation.finished == ["0", "1", "2"]


def test_prefill_a_loading_prompt_does_not_hold_up_the_others() -> None:
    simulation = _simulation(asks_store=True)
    simulation.run(
        [Arrival(0, 9, 1, seed=1, load_steps=6, loaded_blocks=2), Arrival(0, 30, 1, seed=2)],
        max_steps=20,
    )
    assert simulation.finished == ["1", "0"]


def test_prefill_priority_is_a_head_start_and_no_more() -> None:
    simulation = _simulation(max_batch_tokens=16, max_running=1)
    stream = [Arrival(1 + step, 15, 1, seed=step, priority=1) for step in range(300)]
    simulation.run([Arrival(0, 16, 1, seed=998), Arrival(0, 12, 1, seed=999), *stream], 1_000)
    place = {name: i for i, name in enumerate(simulation.finished)}
    assert place[RequestId("2")] < place[RequestId("0")] < 150


def test_prefill_a_cancelled_prompt_gives_its_place_to_the_next() -> None:
    simulation = _simulation(num_blocks=8, max_batch_tokens=4)
    long = Arrival(0, 30, 1, seed=1, cancelled_after_steps=2)
    simulation.run([long, Arrival(1, 30, 1, seed=2)], max_steps=30)
    assert simulation.finished == ["1"]
    assert [step[0].request.request_id for step in simulation.steps[:3]] == ["0", "0", "1"]

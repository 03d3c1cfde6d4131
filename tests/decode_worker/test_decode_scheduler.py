"""The decode scheduler: pure, so that whole runs are played without a model."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from decode_worker.scheduler import DecodeScheduler
from kvstore.core.ids import RequestId
from model_runner.testing import Arrival, SchedulerSimulation, blocks_needed, window_group

_BLOCK = 4


def _simulation(
    num_blocks: int = 64,
    max_batch_tokens: int = 16,
    max_running: int = 4,
    asks_store: bool = False,
    leave_steps: int = 0,
) -> SchedulerSimulation:
    scheduler = DecodeScheduler(max_batch_tokens=max_batch_tokens, max_running=max_running)
    return SchedulerSimulation(
        scheduler, num_blocks, _BLOCK, max_batch_tokens, max_running, asks_store, leave_steps
    )


def _preemptions(simulation: SchedulerSimulation) -> dict[str, int]:
    requests = {chunk.request for step in simulation.steps for chunk in step}
    return {request.request_id: request.num_preemptions for request in requests}


def _shapes(simulation: SchedulerSimulation) -> list[list[tuple[str, int]]]:
    return [[(c.request.request_id, c.num_tokens) for c in step] for step in simulation.steps]


_arrivals = st.lists(
    st.builds(
        Arrival,
        step=st.integers(0, 12),
        num_prompt_tokens=st.integers(1, 20),
        max_tokens=st.integers(1, 16),
        seed=st.integers(0, 3),
        load_steps=st.integers(0, 3),
        loaded_blocks=st.integers(0, 8),
        cancelled_after_steps=st.none() | st.integers(0, 10),
        priority=st.integers(-1, 1),
    ),
    max_size=12,
)


@given(
    _arrivals,
    st.integers(9, 24),
    st.integers(1, 20),
    st.integers(1, 5),
    st.booleans(),
    st.integers(0, 3),
)
def test_decode_every_request_finishes_within_budget_and_blocks(
    arrivals: list[Arrival],
    num_blocks: int,
    max_batch_tokens: int,
    max_running: int,
    asks_store: bool,
    leave_steps: int,
) -> None:
    simulation = _simulation(num_blocks, max_batch_tokens, max_running, asks_store, leave_steps)
    # Each preemption is paid for by the progress of one before it: quadratic in the worst case.
    tokens = sum(arrival.num_prompt_tokens + arrival.max_tokens for arrival in arrivals)
    steps = 20 + (tokens + 5) * (len(arrivals) + 1)
    simulation.run(arrivals, max_steps=steps + leave_steps * tokens)
    kept = sum(arrival.cancelled_after_steps is None for arrival in arrivals)
    assert len(simulation.finished) >= kept


@given(
    _arrivals,
    st.lists(st.none() | st.integers(1, 14), min_size=1, max_size=2),
    st.integers(0, 4),
    st.integers(1, 30),
    st.integers(2, 5),
    st.booleans(),
    st.integers(0, 3),
)
def test_decode_with_windows_every_request_finishes_in_the_least_room(
    arrivals: list[Arrival],
    windows: list[int | None],
    more_blocks: int,
    max_batch_tokens: int,
    max_running: int,
    asks_store: bool,
    leave_steps: int,
) -> None:
    groups = [window_group(window, _BLOCK) for window in windows]
    longest = max((one.num_prompt_tokens + one.max_tokens for one in arrivals), default=1)
    num_blocks = blocks_needed(groups, longest) + more_blocks
    simulation = _simulation(num_blocks, max_batch_tokens, max_running, asks_store, leave_steps)
    simulation = replace(simulation, groups=groups)
    tokens = sum(arrival.num_prompt_tokens + arrival.max_tokens for arrival in arrivals)
    steps = 20 + (tokens + 5) * (len(arrivals) + 1)
    simulation.run(arrivals, max_steps=steps + leave_steps * tokens)
    kept = sum(arrival.cancelled_after_steps is None for arrival in arrivals)
    assert len(simulation.finished) >= kept


def test_decode_prompts_that_wait_for_each_others_blocks_go_on() -> None:
    """Each has the blocks that the other waits for among its hits: the last one gives way."""
    simulation = replace(_simulation(3, 4, 3), groups=[window_group(4, _BLOCK)])
    simulation.run(
        [
            Arrival(0, 1, 1),
            Arrival(0, 1, 1),
            Arrival(0, 9, 5, priority=-1),
            Arrival(0, 10, 1),
            Arrival(0, 10, 1, seed=1),
        ],
        max_steps=60,
    )
    assert sorted(_preemptions(simulation).values())[-1] > 0


def test_decode_tokens_of_running_requests_come_before_prompts() -> None:
    simulation = _simulation(max_batch_tokens=8)
    simulation.run([Arrival(0, 3, 4, seed=1), Arrival(1, 12, 1, seed=2)], max_steps=20)
    assert _shapes(simulation)[:3] == [
        [("0", 3)],
        [("0", 1), ("1", 7)],
        [("0", 1), ("1", 5)],
    ]


def test_decode_the_youngest_is_preempted_and_finishes_later() -> None:
    simulation = _simulation(num_blocks=6, max_batch_tokens=16)
    simulation.run([Arrival(0, 8, 14, seed=1), Arrival(0, 8, 14, seed=2)], max_steps=100)
    assert _preemptions(simulation) == {"0": 0, "1": 1}
    assert simulation.finished == ["0", "1"]


def test_decode_nobody_overtakes_a_request_that_waits_for_room() -> None:
    simulation = _simulation(num_blocks=8, max_batch_tokens=8)
    simulation.run(
        [Arrival(0, 20, 6, seed=1), Arrival(1, 24, 2, seed=2), Arrival(2, 4, 2, seed=3)],
        max_steps=60,
    )
    assert simulation.finished == ["0", "1", "2"]


def test_decode_a_loading_request_keeps_its_blocks() -> None:
    """The older one waits for room rather than take memory that the store is writing to."""
    simulation = _simulation(num_blocks=6, max_batch_tokens=16, asks_store=True)
    loading = Arrival(0, 12, 1, seed=2, load_steps=12, loaded_blocks=2)
    simulation.run([Arrival(0, 4, 16, seed=1), loading], max_steps=100)
    assert not simulation.steps[loading.load_steps]
    assert simulation.finished == ["0", "1"]


def test_decode_priority_is_a_head_start_and_no_more() -> None:
    """It overtakes those that wait; a stream of others that outrank it holds nobody up for ever."""
    simulation = _simulation(num_blocks=16, max_running=1)
    first = [Arrival(0, 4, 2, seed=i) for i in range(3)]
    stream = [Arrival(1 + i, 4, 2, seed=10 + i, priority=1) for i in range(200)]
    simulation.run([*first, *stream], max_steps=1_000)
    place = {name: i for i, name in enumerate(simulation.finished)}
    assert place[RequestId("3")] < place[RequestId("1")] < place[RequestId("2")] < 100


def test_decode_the_lowest_priority_is_preempted_though_it_came_first() -> None:
    simulation = _simulation(num_blocks=6)
    arrivals = [Arrival(0, 8, 14, seed=1, priority=-1), Arrival(0, 8, 14, seed=2)]
    simulation.run(arrivals, max_steps=100)
    assert _preemptions(simulation) == {"0": 1, "1": 0}
    assert simulation.finished == ["1", "0"]


def test_decode_blocks_that_leave_are_waited_for_and_nobody_else_is_preempted() -> None:
    """The store is slow to copy the victim's blocks: the others keep theirs."""
    simulation = _simulation(num_blocks=13, asks_store=True, leave_steps=6)
    # All of them come to the end of a block at once, when one block is left.
    simulation.run([Arrival(0, 12, 12, seed=i) for i in range(3)], max_steps=200)
    assert _preemptions(simulation) == {"0": 0, "1": 0, "2": 1}


def test_decode_each_preemption_doubles_the_margin_of_the_next_admission() -> None:
    """The last one is not taken in each time that one of the others ends, only to be preempted
    again when the rest have grown (three times, here)."""
    ending_one_by_one = [Arrival(0, 4, 16 + 8 * i, seed=i) for i in range(6)]
    simulation = _simulation(num_blocks=40, max_batch_tokens=64, max_running=16)
    simulation.run([*ending_one_by_one, Arrival(0, 4, 120, seed=99)], max_steps=1_000)
    assert _preemptions(simulation)["6"] == 1

"""The decode scheduler: pure, so that whole runs are played without a model."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from decode_worker.scheduler import DecodeScheduler
from model_runner.testing import Arrival, SchedulerSimulation

_BLOCK = 4


def _simulation(
    num_blocks: int = 64,
    max_batch_tokens: int = 16,
    max_running: int = 4,
    asks_store: bool = False,
) -> SchedulerSimulation:
    scheduler = DecodeScheduler(max_batch_tokens=max_batch_tokens, max_running=max_running)
    return SchedulerSimulation(
        scheduler, num_blocks, _BLOCK, max_batch_tokens, max_running, asks_store
    )


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
    ),
    max_size=12,
)


@given(_arrivals, st.integers(9, 24), st.integers(1, 20), st.integers(1, 5), st.booleans())
def test_decode_every_request_finishes_within_budget_and_blocks(
    arrivals: list[Arrival],
    num_blocks: int,
    max_batch_tokens: int,
    max_running: int,
    asks_store: bool,
) -> None:
    simulation = _simulation(num_blocks, max_batch_tokens, max_running, asks_store)
    # Each preemption is paid for by an older request's progress: quadratic in the worst case.
    tokens = sum(arrival.num_prompt_tokens + arrival.max_tokens for arrival in arrivals)
    simulation.run(arrivals, max_steps=20 + (tokens + 5) * (len(arrivals) + 1))
    kept = sum(arrival.cancelled_after_steps is None for arrival in arrivals)
    assert len(simulation.finished) >= kept


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
    requests = {chunk.request for step in simulation.steps for chunk in step}
    preempted = {request.request_id: request.num_preemptions for request in requests}
    assert preempted == {"0": 0, "1": 1}
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

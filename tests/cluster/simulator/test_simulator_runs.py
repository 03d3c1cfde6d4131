"""Whole runs: what must hold whatever is simulated."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cluster.demo.trace import TraceRequest
from cluster.simulator.decoding import DecodeBatch
from cluster.simulator.instance import Instance
from cluster.simulator.scenario import Scenario
from cluster.simulator.sequence import Ending
from cluster.simulator.simulation import Simulation
from cluster.simulator.workload import expand

from .conftest import distinct, plain_profile, request, simulate

SHAPES: list[dict[str, Any]] = [
    {"workers": 3},
    {"prefill": 2, "decode": 2},
    {"workers": 3, "mtbf_s": 3.0, "repair_s": 1.0},
    {"prefill": 2, "decode": 2, "mtbf_s": 4.0, "repair_s": 1.0, "event_delay_s": 0.05},
]
SMALL = {
    "device_blocks": 60,
    "host_blocks": 200,
    "prefill_token_s": 1e-5,
    "network_bytes_per_s": 1e8,
    "host_load_bytes_per_s": 1e9,
}


@pytest.fixture(scope="module")
def trace() -> list[TraceRequest]:
    """Conversations that grow, over a common first block."""
    requests = []
    for i in range(240):
        conversation, turn = i % 40, i // 40
        ids = (0, *range(1000 * conversation + 1, 1000 * conversation + 2 + turn))
        prompt = 512 * len(ids) - (37 * i) % 500
        requests.append(request(i * 60, prompt, 1 + (i * 17) % 90, ids))
    return requests


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("policy", ["round-robin", "joint"])
def test_every_request_ends_once_and_its_tokens_add_up(
    trace: list[TraceRequest], shape: dict[str, Any], policy: str
) -> None:
    report = simulate(trace, plain_profile(**SMALL), policy=policy, **shape)
    assert report.completed + report.rejected + report.failed == report.requests == len(trace)
    for record in report.records:
        if record.ending is not Ending.COMPLETED:
            continue
        assert record.request.arrival_s <= record.started_s
        assert record.first_token_s is not None
        assert record.started_s < record.first_token_s <= record.last_token_s
        hits = record.device_tokens + record.host_tokens + record.remote_tokens
        assert hits + record.computed_tokens == record.request.prompt_tokens
    assert 0 < report.hit_ratio < 1


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_memory_is_given_back_and_never_exceeded(
    trace: list[TraceRequest], shape: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    instances: list[Instance] = []
    make, advance = Instance.__init__, DecodeBatch.advance

    def remember(self: Instance, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        instances.append(self)

    def check(self: DecodeBatch, *args: Any, **kwargs: Any) -> None:
        advance(self, *args, **kwargs)
        for instance in instances:
            assert 0 <= instance.device.used_blocks <= instance.device.pool.num_blocks
            assert len(instance.node) <= instance.node.capacity_blocks

    monkeypatch.setattr(Instance, "__init__", remember)
    monkeypatch.setattr(DecodeBatch, "advance", check)
    simulate(trace, plain_profile(**SMALL), **shape)
    assert len(instances) >= 3
    assert [instance.device.used_blocks for instance in instances] == [0] * len(instances)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_same_input_gives_the_same_report_to_the_last_bit(
    trace: list[TraceRequest], shape: dict[str, Any]
) -> None:
    def run() -> str:
        report = simulate(trace, plain_profile(**SMALL), policy="joint", seed=5, **shape)
        times = [(record.first_token_s, record.last_token_s) for record in report.records]
        return json.dumps([report.as_json(), times])

    assert run() == run()


def test_seed_decides_when_nodes_fail(trace: list[TraceRequest]) -> None:
    durations = {
        simulate(trace, plain_profile(**SMALL), workers=3, mtbf_s=3.0, seed=seed).ttft_ms
        for seed in range(3)
    }
    assert len(durations) == 3


def test_requests_survive_the_death_of_their_worker(trace: list[TraceRequest]) -> None:
    report = simulate(trace, plain_profile(**SMALL), workers=3, mtbf_s=5.0, repair_s=0.5)
    again = [record for record in report.records if record.attempts == 2]
    assert sum(record.ending is Ending.COMPLETED for record in again) >= 5
    assert set(report.reasons) <= {"every worker that had it died"}


def test_where_all_workers_die_for_good_requests_fail_or_are_refused(
    trace: list[TraceRequest],
) -> None:
    report = simulate(
        trace, plain_profile(**SMALL), workers=2, mtbf_s=0.5, repair_s=1e6, member_ttl_s=2.0
    )
    assert report.completed < len(trace)
    assert set(report.reasons) == {"UnavailableError", "every worker that had it died"}


def test_blocks_that_the_conductor_hears_of_late_are_found_less_often() -> None:
    """A second turn goes to the worker of the first, if the conductor knows."""
    ids = [[i, 100 + i] for i in range(6)]
    turns = [request(100 * i, 1024, 1, ids[i]) for i in range(6)]
    turns += [request(3000 + 100 * i, 1536, 1, [*ids[5 - i], 200 + i]) for i in range(6)]
    profile = plain_profile(prefill_token_s=1e-5)
    prompt = simulate(turns, profile, policy="joint", workers=3)
    late = simulate(turns, profile, policy="joint", workers=3, event_delay_s=60.0)
    assert prompt.hit_ratio > late.hit_ratio


def test_time_of_arrival_follows_the_speedup() -> None:
    requests = expand([request(4000, 512, 1, [1])], block_size_tokens=64, speedup=4)
    assert requests[0].arrival_s == pytest.approx(1.0)


def test_late_admission_refuses_after_the_prompt_is_computed() -> None:
    report = simulate(
        distinct(8, 100, 512, 20), plain_profile(), workers=1, admission="late", slo_itl_ms=0.001
    )
    assert report.reasons == {"OverloadedError": 8}
    assert all(record.computed_tokens == 512 for record in report.records)


def test_early_refusal_computes_nothing() -> None:
    report = simulate(
        distinct(8, 100, 512, 20),
        plain_profile(),
        workers=1,
        admission="predictive",
        slo_itl_ms=0.001,
    )
    assert report.rejected == 8
    assert not any(record.computed_tokens for record in report.records)


def test_steps_are_not_events(trace: list[TraceRequest]) -> None:
    """A few for each request, however long its answer: that is what makes long traces cheap."""
    profile = plain_profile(prefill_token_s=1e-5)
    options = Scenario(profile).varied({"workers": 3, "policy": "round-robin"}).options()
    simulation = Simulation(expand(trace, block_size_tokens=64, speedup=1), options)
    simulation.run()
    assert simulation.events < 12 * len(trace) + 1000

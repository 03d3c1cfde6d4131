"""One instance against timings worked out by hand, and against theory."""

from __future__ import annotations

import numpy as np
import pytest

from cluster.simulator.profiles import dynamo_mocker_profile
from cluster.simulator.sequence import Ending

from .conftest import distinct, plain_profile, request, simulate


def test_a_request_alone_takes_its_prefill_and_its_steps() -> None:
    report = simulate(distinct(1, 0, 1000, 11), plain_profile(), workers=1)
    record = report.records[0]
    # The step that computes the prompt makes the first token too: 1,000 ms + 10 ms.
    assert record.ttft_s == pytest.approx(1.010)
    assert record.itl_s == pytest.approx(0.010)
    assert report.duration_s == pytest.approx(1.110)


def test_long_prompt_is_computed_in_chunks_beside_those_who_decode() -> None:
    profile = plain_profile(max_batch_tokens=513)
    trace = [request(0, 512, 100, [0]), request(600, 1024, 1, [1, 2])]
    first, second = simulate(trace, profile, workers=1).records
    # The first decodes from 522 ms on, and takes one token of each step's budget: the second waits
    # for the step under way at 600 ms, which ends at 602, and gets two steps of 512 + 10 ms.
    assert second.ttft_s == pytest.approx(0.602 + 2 * 0.522 - 0.600)
    assert first.itl_s == pytest.approx((8 * 0.010 + 2 * 0.522 + 89 * 0.010) / 99)


def test_prefix_found_on_the_device_is_not_computed_again() -> None:
    trace = [request(0, 1024, 1, [0, 1]), request(5000, 1536, 1, [0, 1, 2])]
    report = simulate(trace, plain_profile(), workers=1)
    again = report.records[1]
    assert (again.device_tokens, again.computed_tokens) == (1024, 512)
    assert again.ttft_s == pytest.approx(0.522)
    assert report.hit_ratio == pytest.approx(1024 / 2560)


def test_the_whole_prompt_cached_still_computes_its_last_block() -> None:
    trace = [request(0, 1024, 1, [0, 1]), request(5000, 1024, 1, [0, 1])]
    again = simulate(trace, plain_profile(), workers=1).records[1]
    assert (again.device_tokens, again.computed_tokens) == (1024 - 64, 64)


def test_prefill_of_the_mocker_is_its_polynomial() -> None:
    """One request of 7,236 tokens and 794 tokens of answer, as Dynamo's replay reports it."""
    profile = dynamo_mocker_profile()
    record = simulate(distinct(1, 0, 7236, 794), profile, workers=1).records[0]
    assert record.ttft_s * 1e3 == pytest.approx(154.526722, abs=1e-3)


def test_queue_waits_as_long_as_theory_says() -> None:
    """M/D/1: Poisson arrivals at load rho wait rho / (2 (1 - rho)) service times on average."""
    service_s, rho, count = 0.1, 0.6, 4_000
    gaps = np.random.default_rng(1).exponential(service_s / rho, count)
    trace = [request(round(at * 1e6), 100, 1, [i]) for i, at in enumerate(np.cumsum(gaps).tolist())]
    # Prompts that cannot share a step: one after the other. Timestamps in us, hence the speedup.
    profile = plain_profile(max_batch_tokens=100, max_running=1, decode_step_s=0.0)
    report = simulate(trace, profile, workers=1, speedup=1000)
    waits = [record.ttft_s - service_s for record in report.records]
    assert np.mean(waits) == pytest.approx(rho / (2 * (1 - rho)) * service_s, rel=0.1)


def test_sequences_that_outgrow_memory_are_preempted_and_still_end() -> None:
    profile = plain_profile(device_blocks=40)
    report = simulate(distinct(4, 0, 512, 300), profile, workers=1)
    assert report.preemptions > 0
    assert report.completed == 4


def test_a_request_larger_than_the_device_fails_alone() -> None:
    trace = [*distinct(2, 10, 512, 5), request(20, 10_240, 5, range(100, 120))]
    report = simulate(trace, plain_profile(device_blocks=40), workers=1)
    assert [record.ending for record in report.records] == [
        Ending.COMPLETED,
        Ending.COMPLETED,
        Ending.FAILED,
    ]
    assert report.reasons == {"larger than the device tier": 1}


def test_hand_over_takes_its_time_on_the_network() -> None:
    profile = plain_profile(network_bytes_per_s=1e6)
    record = simulate(distinct(1, 0, 1024, 3), profile, prefill=1, decode=1).records[0]
    # 1,024,000 bytes at 1 MB/s between the first token and the two that the decode worker makes.
    assert record.ttft_s == pytest.approx(1.024)
    assert record.last_token_s == pytest.approx(1.024 + 1.024 + 2 * 0.010)


def test_host_tier_gives_back_what_the_device_has_lost() -> None:
    profile = plain_profile(device_blocks=40, host_blocks=1000, host_load_bytes_per_s=1e7)
    trace = [
        request(0, 1024, 1, [0, 1]),
        *[request(5000 + i, 1024, 1, [10 + 2 * i, 11 + 2 * i]) for i in range(3)],
        request(20_000, 1025, 1, [0, 1, 2]),
    ]
    again = simulate(trace, profile, workers=1).records[-1]
    assert (again.device_tokens, again.host_tokens) == (0, 1024)
    # 1,024,000 bytes at 10 MB/s, one token, one step.
    assert again.ttft_s == pytest.approx(0.1024 + 0.001 + 0.010)


def test_store_pulls_from_another_node_and_keeps_a_replica() -> None:
    profile = plain_profile(host_blocks=1000, network_bytes_per_s=1e7)
    trace = [request(at, 1025, 1, [0, 1, 2]) for at in (0, 10_000, 20_000)]
    # Round-robin: the second goes to the other worker, the third to the first again.
    first, second, third = simulate(trace, profile, workers=2).records
    assert first.computed_tokens == 1025
    assert (second.remote_tokens, second.computed_tokens) == (1024, 1)
    assert third.device_tokens == 1024


def test_pull_that_takes_longer_than_computing_is_not_made() -> None:
    profile = plain_profile(host_blocks=1000, network_bytes_per_s=1e5)
    trace = [request(at, 1025, 1, [0, 1, 2]) for at in (0, 10_000)]
    second = simulate(trace, profile, workers=2).records[1]
    assert second.computed_tokens == 1025

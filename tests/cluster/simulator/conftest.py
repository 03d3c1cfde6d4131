"""Small clusters and workloads whose timing can be worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cluster.demo.trace import TraceRequest
from cluster.simulator.profiles import Profile
from cluster.simulator.report import Report
from cluster.simulator.scenario import Scenario


def plain_profile(**values: Any) -> Profile:
    """1 ms a prompt token, 10 ms a decode step, whatever the batch."""
    profile = Profile(
        name="plain",
        block_size_tokens=64,
        device_blocks=1024,
        host_blocks=0,
        kv_token_bytes=1000,
        prefill_step_s=0.0,
        prefill_token_s=1e-3,
        prefill_square_s=0.0,
        prefill_pair_s=0.0,
        decode_step_s=10e-3,
        decode_sequence_s=0.0,
        decode_kv_token_s=0.0,
        decode_kv_square_s=0.0,
    )
    return replace(profile, **values)


def request(at_ms: int, prompt: int, output: int, ids: Sequence[int]) -> TraceRequest:
    assert len(ids) == -(-prompt // 512)
    return TraceRequest(at_ms, prompt, output, tuple(ids))


def distinct(count: int, every_ms: int, prompt: int, output: int) -> list[TraceRequest]:
    """Requests that share nothing."""
    per = -(-prompt // 512)
    return [
        request(i * every_ms, prompt, output, range(i * per, (i + 1) * per)) for i in range(count)
    ]


def simulate(trace: Sequence[TraceRequest], profile: Profile, **settings: Any) -> Report:
    """Round-robin without admission, unless told otherwise."""
    base = {"policy": "round-robin", "admission": "none"}
    return Scenario(profile).varied(base | settings).run(trace)

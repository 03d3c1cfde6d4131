from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from cluster.demo.client import Answer
from cluster.demo.report import Outcome, summary, tables
from cluster.demo.workload import DemoRequest, Phase

ANSWER = Answer(
    text="abc",
    output_tokens=3,
    finish_reason="length",
    prompt_tokens=100,
    hit_tokens={"device": 0, "host": 64, "disk": 16, "remote": 0},
    ttft_ms=10.0,
    itl_ms=2.0,
)


def outcome(phase: Phase, ttft_ms: float = 10.0) -> Outcome:
    answer = replace(ANSWER, ttft_ms=ttft_ms)
    return Outcome(DemoRequest(f"{phase} 1", phase, 3), answer=answer, reference=ANSWER)


def test_summary_adds_up() -> None:
    outcomes = [outcome("chat"), outcome("cold", 90.0), outcome("warm host", 20.0)]
    assert summary([*outcomes, outcome("warm disk", 40.0)]) == {
        "requests": 4,
        "failed": 0,
        "identical": True,
        "hit_tokens": {"device": 0, "host": 256, "disk": 64, "remote": 0},
        "prompt_tokens": 400,
        "ttft_ms": {"cold_p50": 90.0, "warm_p50": 30.0},
    }


@pytest.mark.parametrize(
    "changed", [{"text": "abd"}, {"output_tokens": 2}, {"finish_reason": "stop"}]
)
def test_one_different_answer_is_seen(changed: dict[str, object]) -> None:
    differs = replace(outcome("chat"), reference=replace(ANSWER, **changed))
    result = summary([outcome("chat"), differs])
    assert (result["identical"], result["failed"]) == (False, 0)


def test_failed_request_is_neither_identical_nor_forgotten() -> None:
    failed = Outcome(DemoRequest("cold 1", "cold", 3), error="APIError: [/] no room")
    result = summary([outcome("chat"), failed])
    assert (result["requests"], result["failed"], result["identical"]) == (2, 1, False)
    assert result["ttft_ms"] == {"cold_p50": None, "warm_p50": None}


def test_nothing_asked_proves_nothing() -> None:
    assert summary([])["identical"] is False


def test_tables_show_every_request_and_error() -> None:
    failed = Outcome(DemoRequest("trace 3", "trace", 3), error="APIError: [/] no room")
    text = io.StringIO()
    shown = [outcome("cold", 90.0), outcome("warm host", 30.0), failed]
    Console(file=text, width=120).print(tables(shown))
    lines = text.getvalue()
    assert "APIError: [/] no room" in lines
    assert "3.0 x" in lines
    assert all(f"{o.request.name}" in lines for o in shown)

"""The engine's figures that need real nodes and workers, on a model that takes milliseconds."""

from __future__ import annotations

import multiprocessing
import os
import re
from dataclasses import replace

import pytest

from cluster.bench import engine_idle as engine_idle_module
from cluster.bench.case import BenchOptions
from cluster.bench.engine_idle import cpu_seconds, engine_idle
from cluster.bench.engine_itl import engine_itl
from cluster.bench.engine_publish import engine_publish
from cluster.bench.engine_setup import EngineSize
from cluster.bench.engine_ttft import engine_ttft
from cluster.bench.engine_worker import started
from kvstore.core.errors import ConfigurationError
from model_runner.tiny import SMALL, build_checkpoint

pytestmark = pytest.mark.timeout(300)  # each starts processes that import torch

SHAPE = replace(SMALL, max_context_tokens=16_384)
"""So that a sequence which is to run meanwhile does not come to its end."""
SIZE = EngineSize(
    SHAPE,
    short_tokens=32,
    long_tokens=400,
    longest_tokens=400,
    quiet_tokens=40,
    prefill_rounds=1,
    arrivals=1,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    build_checkpoint(folder / "engine-model", texts=["text to learn from"], shape=SHAPE)
    return folder


def test_hits_come_from_the_tier_that_the_case_is_named_after(folder):
    cases = list(engine_ttft(BenchOptions(folder), SIZE))
    assert [case.name for case in cases] == ["ttft_95_host", "ttft_95_disk", "ttft_95_remote"]
    for case in cases:
        assert "400 tokens, 384 of them from there" in case.note
        assert case.value > 0


def test_publishing_is_held_against_a_worker_without_a_store(folder):
    [case] = engine_publish(BenchOptions(folder), SIZE)
    assert case.name == "publish_overhead"
    assert case.ratio > 0


def test_gaps_are_taken_while_a_prompt_arrives_and_while_none_does(folder):
    cases = list(engine_itl(BenchOptions(folder), SIZE))
    assert [case.name for case in cases] == ["itl_p99_under_prefill", "itl_p99_colocated"]
    for case in cases:
        assert case.value > 0
        assert case.ceiling > 0
        [gaps] = re.findall(r"(\d+) gaps", case.note)
        assert int(gaps) > 0


def test_an_idle_worker_and_its_start(folder, monkeypatch):
    monkeypatch.setattr(engine_idle_module, "SETTLE_S", 0.1)
    monkeypatch.setattr(engine_idle_module, "WATCH_S", 0.5)
    idle, start = engine_idle(BenchOptions(folder), SIZE)
    assert (idle.name, start.name) == ("idle_cpu_percent", "start_to_ready_s")
    assert 0 <= idle.value < 100
    assert start.value > 0


def test_cpu_time_of_a_process_is_that_of_all_its_threads():
    before_s = cpu_seconds(os.getpid())
    while cpu_seconds(os.getpid()) - before_s < 0.05:
        pass
    user, system, *_ = os.times()
    assert cpu_seconds(os.getpid()) == pytest.approx(user + system, abs=0.1)


def test_a_worker_that_ends_before_it_serves_is_a_configuration_error():
    ours, theirs = multiprocessing.Pipe()
    theirs.close()
    with pytest.raises(ConfigurationError, match="did not start"):
        started(ours)
    ours.close()

"""`kvstore bench`: what it prints, writes and refuses."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console
from typer.testing import CliRunner

from cluster.bench.case import Case, Skipped
from cluster.bench.registry import BENCHMARKS, load_benchmarks
from cluster.bench.report import as_json, as_table
from cluster.cli.main import app
from kvstore.core.errors import ConfigurationError


@pytest.fixture
def trace(tmp_path):
    path = tmp_path / "trace.jsonl"
    prompts = [list(range(i % 7 * 10, i % 7 * 10 + 4)) for i in range(200)]
    requests = [
        {"timestamp": 100 * i, "input_length": 2048, "output_length": 1, "hash_ids": blocks}
        for i, blocks in enumerate(prompts)
    ]
    path.write_text("".join(json.dumps(request) + "\n" for request in requests))
    return path


def bench(*arguments):
    result = CliRunner().invoke(app, ["bench", *map(str, arguments)])
    if isinstance(result.exception, ConfigurationError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_evict_prints_one_object_a_line_and_saves_them(trace, tmp_path):
    saved = tmp_path / "figures.json"
    printed = bench(
        *("evict", "--json", "--trace", trace, "--capacity-tokens", "8192,100000"),
        *("--policy", "lru,belady", "--save", saved),
    )
    cases = [json.loads(line) for line in printed.splitlines()]
    names = ["lru_8192", "belady_8192", "lru_100000", "belady_100000"]
    assert [case["case"] for case in cases] == names
    figures = {case["case"]: case for case in cases}
    assert figures["lru_8192"]["value"] == 0, "seven prompts in turn, room for four"
    assert 0.3 < figures["belady_8192"]["value"] < 1
    assert figures["lru_100000"]["value"] == pytest.approx(1 - 7 / 200)
    assert figures["lru_100000"]["ratio"] == 1
    content = json.loads(saved.read_text())
    assert content["figures"] == cases
    assert content["machine"]["cpu_cores"] >= 1


def test_a_table_is_what_a_person_gets(trace):
    shown = bench("evict", "--trace", trace, "--policy", "lru", "--capacity-tokens", "8192")
    assert "lru_8192" in shown
    assert "Belady" in shown


def test_only_the_cases_asked_for_are_told(trace):
    told = bench(
        *("evict", "--json", "--trace", trace, "--capacity-tokens", "8192"),
        *("--policy", "lru,belady", "--case", "belady_8192"),
    )
    assert [json.loads(line)["case"] for line in told.splitlines()] == ["belady_8192"]


def test_a_goal_a_spread_and_what_was_skipped_are_shown():
    case = Case("speed", 3.0, "tokens/s", 2.0, "a peer", ratios=[1.0, 1.6, 2.0], goal="ratio >= 1")
    skipped = Skipped("copies", "no CUDA device here")
    assert as_json(case)["ratio"] == 1.6
    assert as_json(case)["ratio_spread"] == [1.0, 2.0]
    assert as_json(skipped) == {"case": "copies", "skipped": "no CUDA device here"}
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(as_table("engine", [case, skipped]))
    shown = console.export_text()
    for text in ("1.6 (1 - 2)", "ratio >= 1", "skipped", "no CUDA device here"):
        assert text in shown


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nothing"], "accepted are dataplane"),
        (["evict"], "--trace FILE"),
        (["evict", "--trace", "TRACE", "--policy", "magic"], "--policy magic"),
        (["evict", "--trace", "TRACE", "--capacity-tokens", "8k"], "whole numbers"),
        (["evict", "--trace", "TRACE", "--capacity-tokens", "5"], "at least one block"),
        (["dataplane", "--peer", "mooncake"], "mooncake=PYTHON"),
        (
            ["evict", "--trace", "TRACE", "--policy", "lru", "--case", "lru_1"],
            "--case lru_1: it has no such case",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(trace, arguments, says):
    with pytest.raises(ConfigurationError, match=says):
        bench(*(trace if argument == "TRACE" else argument for argument in arguments))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_can_be_loaded(name):
    assert all(map(callable, load_benchmarks(name)))

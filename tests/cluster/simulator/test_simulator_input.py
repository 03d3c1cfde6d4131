"""What cannot be simulated is refused with words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster.cli.main import app
from cluster.demo.trace import parse_trace
from cluster.simulator.profiles import (
    Profile,
    dynamo_mocker_profile,
    load_profile,
    paper_profile,
    parse_profile,
)
from cluster.simulator.scenario import Scenario, known_names
from cluster.simulator.sweep import parse_axis, sweep
from cluster.simulator.workload import expand, with_hot_prefix, without_reuse
from kvstore.core.errors import ConfigurationError

from .conftest import distinct, plain_profile, request

GOOD = {"timestamp": 0, "input_length": 600, "output_length": 3, "hash_ids": [1, 2]}


@pytest.fixture
def trace_file(tmp_path: Path) -> Path:
    path = tmp_path / "trace.jsonl"
    lines = [{**GOOD, "timestamp": 100 * i, "hash_ids": [0, i]} for i in range(1, 30)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["simulate", *arguments])


@pytest.mark.parametrize(
    "wrong",
    [
        {"input_length": -600},
        {"output_length": -1},
        {"timestamp": "soon"},
        {"hash_ids": [1]},
        {"hash_ids": [-1, 2]},
    ],
    ids=str,
)
def test_line_of_a_malformed_request_is_named(wrong: dict[str, Any]) -> None:
    lines = [json.dumps(GOOD), json.dumps(GOOD | wrong)]
    with pytest.raises(ConfigurationError, match="line 2"):
        list(parse_trace(lines, "trace"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "give either"),
        ({"workers": -1}, "give either"),
        ({"workers": 2, "prefill": 1}, "give either"),
        ({"prefill": 2}, "give either"),
        ({"workers": 1, "slo_ttft_ms": 0}, "ttft_s"),
        ({"workers": 1, "slo_itl_ms": -5.0}, "itl_s"),
        ({"workers": 1, "slo_ttft_ms": "nan"}, "ttft_s"),
        ({"workers": 1, "speedup": 0}, "speedup"),
        ({"workers": 1, "speedup": "fast"}, "speedup=fast"),
        ({"workers": 1, "policy": "psychic"}, "policy 'psychic'"),
        ({"workers": 1, "admission": "maybe"}, "admission 'maybe'"),
        ({"workers": 1, "eviction": "never"}, "eviction 'never'"),
        ({"workers": 1, "workload": "mine"}, "workload 'mine'"),
        ({"workers": 1, "mtbf_s": 0}, "mtbf_s"),
        ({"workers": 1, "event_delay_ms": -1}, "event_delay_s"),
        ({"workers": 1, "block_size_tokens": 60}, "block size 60"),
        ({"workers": 1, "device_blocks": 0}, "device_blocks"),
        ({"workers": 1, "network_gbps": 0}, "network_bytes_per_s"),
        ({"workers": 1, "colour": "red"}, "colour: unknown"),
    ],
    ids=str,
)
def test_absurd_settings_are_named(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        Scenario().varied(settings).run(distinct(2, 10, 600, 3))


def test_empty_workloads_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="no request"):
        expand([], block_size_tokens=64, speedup=1)
    with pytest.raises(ConfigurationError, match="input_length is 0"):
        expand([request(0, 0, 1, [])], block_size_tokens=64, speedup=1)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"block_size_tokens": "64"}, "block_size_tokens"),
        ({"prefill_token_s": -1.0}, "prefill_token_s"),
        ({"decode_step_s": float("inf")}, "decode_step_s"),
        ({"pulls": 1}, "pulls"),
        ({"device_blocks": True}, "device_blocks"),
        ({"warp": 9}, "unknown field warp"),
    ],
    ids=str,
)
def test_field_of_a_wrong_profile_is_named(content: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        parse_profile({**vars(plain_profile()), **content}, "mine.json")


def test_profile_file_is_what_was_measured(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    content = {k: v for k, v in vars(plain_profile()).items() if v != float("inf") and k != "name"}
    path.write_text(json.dumps(content))
    assert load_profile(str(path)) == Profile(**vars(plain_profile()) | {"name": "mine"})
    path.write_text("[]")
    with pytest.raises(ConfigurationError, match="one JSON object"):
        load_profile(str(path))
    path.write_text("{}")
    with pytest.raises(ConfigurationError, match="missing"):
        load_profile(str(path))
    with pytest.raises(ConfigurationError, match="cannot read"):
        load_profile(str(tmp_path / "none.json"))
    with pytest.raises(ConfigurationError, match="accepted are paper"):
        load_profile("a100")


def test_profiles_say_what_their_sources_say() -> None:
    paper = paper_profile(efficiency=1.0)
    # Eq. 2 at a prefix of 8k: reuse pays from about 6 GB/s on.
    token_s = paper.prefill_s(8192, 8192**2 / 2) / 8192
    assert paper.kv_token_bytes / token_s / 1e9 == pytest.approx(6, rel=0.1)
    mocker = dynamo_mocker_profile()
    assert mocker.prefill_s(1000, 0.0) * 1e3 == pytest.approx(0.4209989 + 15.18344 + 16.50142)


def test_variants_of_a_trace_share_what_they_say() -> None:
    trace = [request(i, 1536, 1, [0, 1, 2]) for i in range(100)]
    assert len({i for entry in without_reuse(trace) for i in entry.hash_ids}) == 300
    hot = with_hot_prefix(trace, share=0.8, prefix_blocks=2)
    prefixes = [entry.hash_ids[:2] for entry in hot]
    assert max(prefixes.count(prefix) for prefix in prefixes) == 80
    assert len({entry.hash_ids[-1] for entry in hot}) == 100
    assert [len(entry.hash_ids) for entry in hot] == [3] * 100


def test_axis_may_vary_several_things_together() -> None:
    axis = parse_axis("prefill+decode=1+2,2+1")
    points = list(sweep(Scenario(plain_profile()), [axis], distinct(4, 10, 600, 2)))
    assert [dict(point.values) for point in points] == [
        {"prefill+decode": "1+2"},
        {"prefill+decode": "2+1"},
    ]


@pytest.mark.parametrize("text", ["workers", "workers=", "=4", "prefill+decode=4,8"])
def test_malformed_axis_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="--what-if"):
        parse_axis(text)


def test_command_ends_with_one_json_object(trace_file: Path, tmp_path: Path) -> None:
    saved = tmp_path / "figures.json"
    arguments = ("--profile", "dynamo-mocker", "--workers", "2", "--json", "--save", str(saved))
    result = invoke(str(trace_file), *arguments, "--slo-ttft-ms", "2000", "--slo-itl-ms", "25")
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout.splitlines()[-1])
    assert figures["requests"] == 29
    assert {"good", "rejected", "hit_ratio"} <= set(figures)
    assert set(figures["ttft_ms"]) == set(figures["itl_ms"]) == {"mean", "p50", "p90", "p99"}
    assert json.loads(saved.read_text())["figures"] == [figures]


def test_what_if_of_the_command_is_every_combination(trace_file: Path) -> None:
    axes = ("--what-if", "workers=1,2", "--what-if", "policy=random,joint")
    result = invoke(str(trace_file), *axes, "--json")
    assert result.exit_code == 0, result.output
    points = json.loads(result.stdout.splitlines()[-1])["points"]
    assert [point["what_if"] for point in points] == [
        {"workers": workers, "policy": policy}
        for workers in ("1", "2")
        for policy in ("random", "joint")
    ]


def test_every_setting_is_documented() -> None:
    page = Path("docs/simulator.md").read_text("utf-8")
    assert [name for name in known_names() if f"`{name}`" not in page] == []

"""The command as users run it: processes, their output and their exit status."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

KVSTORE = str(Path(sys.executable).with_name("kvstore"))
DEADLINE_S = 60


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("KVSTORE_")}
    return kept | {"COLUMNS": "120", "NO_COLOR": "1", "TERM": "dumb"}


@pytest.fixture
def kvstore(tmp_path: Path, environment: dict[str, str]):  # type: ignore[no-untyped-def]
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [KVSTORE, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )

    return run


@contextmanager
def running(
    arguments: Sequence[str], folder: Path, environment: dict[str, str]
) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [KVSTORE, *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def ready_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


@pytest.mark.parametrize(
    "command",
    ["", "demo", "serve", "node", "prefill", "decode", "conductor", "gateway", "inspect"],
)
def test_help_explains_the_command(kvstore, command: str) -> None:  # type: ignore[no-untyped-def]
    done = kvstore(*command.split(), "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage: kvstore" in done.stdout
    assert command == "" or f"Example: kvstore {command}" in " ".join(done.stdout.split())


def test_version(kvstore) -> None:  # type: ignore[no-untyped-def]
    done = kvstore("--version")
    assert re.fullmatch(r"kvstore \d+\.\d+\.\d+\n", done.stdout)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("node --config none.toml", "none.toml: cannot read: No such file or directory"),
        ("node --set node.host", "--set node.host: write KEY=VALUE"),
        ("node --set node=1 --set node.host=1MiB", "node is set to a value already"),
        ("node --host much", "command line: node.host: cannot use 'much'"),
        ("node --disk 1GiB", "disk_path"),
        ("prefill", "no model"),
        ("serve --model ./nothing", "./nothing is no folder"),
        ("inspect", "no conductor address"),
        ("inspect 127.0.0.1:1", "127.0.0.1:1"),
        ("demo --trace none.jsonl", "none.jsonl: cannot read the trace"),
    ],
)
def test_operating_error_is_one_line(kvstore, arguments: str, message: str) -> None:  # type: ignore[no-untyped-def]
    done = kvstore(*arguments.split())
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_port_in_use_is_named(kvstore) -> None:  # type: ignore[no-untyped-def]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        gateway = kvstore("gateway", "--port", str(port))
        conductor = kvstore("conductor", "--listen", f"127.0.0.1:{port}")
    for done in (gateway, conductor):
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        assert str(port) in done.stderr
        assert done.stderr.count("\n") == 1


def test_what_a_process_finds_out_is_on_its_standard_error(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    arena = tmp_path / "arena"
    arena.mkdir()
    options = ["node", "--host", "16MiB", "--set", f"node.arena_folder={arena}", "--node-id"]
    with running([*options, "first"], tmp_path, environment) as first:
        endpoint = ready_line(first).partition("zmq_endpoint=")[2].split()[0]
        named = [*options, "second", "--set", f"node.peers={endpoint}"]
        with running(named, tmp_path, environment) as second:
            assert second.stderr is not None
            line = second.stderr.readline()
    assert "info" in line
    assert f"peer first at {endpoint} is here" in line


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_hand_made_cluster_is_seen_by_inspect_and_ends_cleanly(
    kvstore,  # type: ignore[no-untyped-def]
    tmp_path: Path,
    environment: dict[str, str],
    number: signal.Signals,
) -> None:
    arena, disk = tmp_path / "arena", tmp_path / "disk"
    arena.mkdir()
    with running(["conductor"], tmp_path, environment) as conductor:
        address = ready_line(conductor).strip().partition("address=")[2]
        node_options = f"--host 16MiB --disk 64MiB --disk-path {disk} --conductor {address}"
        named = ["node", *node_options.split(), "--set", f"node.arena_folder={arena}"]
        with running(named, tmp_path, environment) as node:
            assert "zmq_endpoint=tcp://127.0.0.1:" in ready_line(node)
            view = json.loads(kvstore("inspect", address, "--json").stdout)
            tables = kvstore("inspect", address).stdout
            node.send_signal(number)
            assert node.wait(DEADLINE_S) == 0
            (logged,) = node.communicate()[1].splitlines()
            assert "level=info" in logged
            assert "member node-0 is registered" in logged
        conductor.send_signal(number)
        assert conductor.wait(DEADLINE_S) == 0
    assert [m["member"]["member_id"] for m in view["members"]] == ["node-0"]
    tiers = {tier["tier"]: int(tier["capacity_bytes"]) for tier in view["nodes"][0]["tiers"]}
    assert tiers["TIER_HOST"] > 0
    assert tiers["TIER_DISK"] == 64 << 20
    assert "node-0" in tables
    assert list(arena.iterdir()) == []

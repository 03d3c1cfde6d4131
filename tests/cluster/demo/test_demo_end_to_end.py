"""The commands that start a whole cluster, as users run them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from cluster.demo.model import own_texts
from model_runner.tiny import TinyShape, build_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

KVSTORE = str(Path(sys.executable).with_name("kvstore"))
DEADLINE_S = 180


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = TinyShape(64, 128, 2, 4, 2, max_context_tokens=1024, vocab_size=2048)
    return build_checkpoint(tmp_path_factory.mktemp("tiny"), texts=own_texts(), shape=shape)


@contextmanager
def running(*arguments: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("KVSTORE_")}
    process = subprocess.Popen(
        [KVSTORE, *arguments],
        cwd=folder,
        env=kept | {"TMPDIR": str(folder), "RAY_ADDRESS": "127.0.0.1:1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.terminate()  # not kill: a failed test should leave no cluster either
        process.communicate(timeout=DEADLINE_S)


def assert_nothing_is_left(process: subprocess.Popen[str], folder: Path) -> None:
    """Neither a process nor a file. Everything a cluster makes bears its launcher's pid."""
    assert [path.name for path in folder.iterdir() if path.name.startswith("kvstore")] == []
    assert list(Path("/dev/shm").glob(f"kvstore-{process.pid}-*")) == []
    assert list(Path("/tmp").glob(f"kvstore-ray-{process.pid}-*")) == []
    assert [line for line in _command_lines() if f"kvstore-ray-{process.pid}-" in line] == []


def _command_lines() -> Iterator[str]:
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            yield (entry / "cmdline").read_text(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue


def test_demo_answers_the_same_from_every_tier(model: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    lines = (
        {"timestamp": 0, "input_length": 1500, "output_length": 48, "hash_ids": [0, n, n + 1]}
        for n in (1, 3)
    )
    trace.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with running("demo", "--model", str(model), "--trace", str(trace), folder=tmp_path) as process:
        stdout, stderr = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, stderr
    assert_nothing_is_left(process, tmp_path)
    result = json.loads(stdout.splitlines()[-1])
    assert (result["failed"], result["identical"]) == (0, True)
    assert result["requests"] >= 9 + 3 * 3 + 2
    hits = result["hit_tokens"]
    assert min(hits["device"], hits["host"], hits["disk"]) > 0
    assert sum(hits.values()) < result["prompt_tokens"]
    assert "trace 2" in stderr


def test_interrupted_demo_leaves_nothing(model: Path, tmp_path: Path) -> None:
    with running("demo", "--model", str(model), folder=tmp_path) as process:
        assert process.stderr is not None
        while "loading the model" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        stdout, _ = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, stdout) == (130, "")
    assert_nothing_is_left(process, tmp_path)


def test_serve_serves_until_it_is_told_to_stop(model: Path, tmp_path: Path) -> None:
    sizes = ["--set", "node.host=16MiB", "--decode-workers", "2"]
    with running("serve", "--model", str(model), "--port", "0", *sizes, folder=tmp_path) as process:
        assert process.stdout is not None
        serving, curl = process.stdout.readline(), process.stdout.readline()
        base_url, conductor = serving.split()[2].rstrip(","), serving.split()[-1]
        body = {"model": model.name, "prompt": "A block is", "max_tokens": 4}
        answer = httpx.post(f"{base_url}/completions", json=body, timeout=60)
        listed = subprocess.run(
            [KVSTORE, "inspect", conductor, "--json"], capture_output=True, check=True, timeout=60
        )
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, stderr
    assert_nothing_is_left(process, tmp_path)
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] == 4
    assert curl.startswith(f"curl {base_url}/chat/completions")
    names = {member["member"]["member_id"] for member in json.loads(listed.stdout)["members"]}
    assert names == {"node-0", "prefill-0", "decode-0", "decode-1"}

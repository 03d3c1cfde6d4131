"""Real load generators against a real cluster. `make load` installs them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.demo.model import build_model

TOOLS = Path(os.environ.get("LOAD_TOOLS", Path.home() / ".cache/kvstore/load-tools"))
LOAD = Path(__file__).parents[3] / "tools" / "load.py"
KVSTORE = str(Path(sys.executable).with_name("kvstore"))
GENERATORS = ("aiperf", "guidellm")
REQUESTS = 12
CONCURRENCY = 2
START_S = 120

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def tools() -> Path:
    missing = [name for name in GENERATORS if not (TOOLS / name / "bin" / name).is_file()]
    if missing:
        pytest.skip(f"{' and '.join(missing)} are not installed in {TOOLS}; `make load` does that")
    return TOOLS


@pytest.fixture
def served(tools: Path, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """URL and model of a cluster of this host."""
    model = build_model(tmp_path / "served-model")
    command = [KVSTORE, "serve", "--model", str(model), "--port", "0"]
    log = (tmp_path / "log").open("w")
    cluster = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
    )
    try:
        line = cluster.stdout.readline()
        found = re.match(r"serving on (\S+)/v1", line)
        assert found, (line, (tmp_path / "log").read_text())
        yield found[1], model
    finally:
        cluster.send_signal(signal.SIGINT)
        cluster.communicate(timeout=60)
        log.close()


def test_no_request_fails(tools: Path, served: tuple[str, Path]) -> None:
    url, model = served
    done = subprocess.run(
        [
            *(sys.executable, LOAD, "--tools", tools, "--url", url, "--model", model.name),
            *("--tokenizer", model, "--requests", str(REQUESTS)),
            *("--concurrency", str(CONCURRENCY)),
        ],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert set(told) == set(GENERATORS)
    for seen in told.values():
        assert seen["errors"] == 0
        assert REQUESTS - CONCURRENCY < seen["requests"] <= REQUESTS
        assert seen["ttft_ms"] > 0
        assert seen["itl_ms"] > 0

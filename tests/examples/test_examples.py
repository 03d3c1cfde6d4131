"""Every example as a user runs it: a process, its output and its exit status."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from model_runner.tiny import SMALL, build_checkpoint

EXAMPLES = Path(__file__).parents[2] / "examples"
KVSTORE = str(Path(sys.executable).with_name("kvstore"))
DEADLINE_S = 100
TEXTS = ["A cache cannot hurt serving.", "def prefill(blocks): return [b for b in blocks]"] * 20
PROMPT = "A cache cannot hurt serving. A cache"


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        capture_output=True, text=True, timeout=DEADLINE_S, check=False, env=_environment(),
    )  # fmt: skip


def _environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("KVSTORE_")}
    ours = {
        "PYTHONPATH": str(EXAMPLES.parent),
        "RAY_ADDRESS": "127.0.0.1:1",
        "OMP_NUM_THREADS": "1",
    }
    return kept | ours


@contextmanager
def running(*arguments: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [KVSTORE, *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env=_environment() | {"TMPDIR": str(folder)},
    )  # fmt: skip
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=DEADLINE_S)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny", texts=TEXTS, shape=SMALL)


@pytest.fixture(scope="module")
def decode_worker(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its address."""
    with running("decode", "--model", str(model), folder=tmp_path_factory.mktemp("run")) as process:
        assert process.stdout is not None
        found = re.search(r"grpc_address=(\S+)", process.stdout.readline())
        assert found
        yield found[1]


def test_every_example_is_run_here() -> None:
    named = {name for name in Path(__file__).read_text().split('"') if name.endswith(".py")}
    assert {file.name for file in EXAMPLES.iterdir() if file.suffix == ".py"} <= named


def test_kv_cache_from_scratch() -> None:
    done = run("kv_cache_from_scratch.py")
    assert done.returncode == 0, done.stderr
    *steps, last = done.stdout.splitlines()
    names = [re.match(r"(.+?) +(\d+) cached +[\d.]+ ms", step).groups() for step in steps]
    assert names == [
        ("no cache", "0"), ("cache", "0"), ("paged cache", "0"), ("shared store", "432"),
    ]  # fmt: skip
    answer = re.fullmatch(r"all answers are equal: \[(.+)\] are their last tokens", last)[1]
    assert len(set(answer.split(", "))) > 2
    assert len((EXAMPLES / "kv_cache_from_scratch.py").read_text().splitlines()) <= 100


def test_kv_cache_from_scratch_notices_a_wrong_answer(tmp_path: Path) -> None:
    """Its equality is asserted: a store with other bytes must not pass."""
    source = (EXAMPLES / "kv_cache_from_scratch.py").read_text()
    broken = source.replace(
        "store.put(keys, [first.pool[block]", "store.put(keys, [-first.pool[block]"
    )
    assert broken != source
    (tmp_path / "broken.py").write_text(broken)
    done = run(str(tmp_path / "broken.py"))
    assert done.returncode == 1
    assert "AssertionError" in done.stderr


def test_transformers_prefix_cache(model: Path) -> None:
    done = run("transformers_prefix_cache.py", "--model", str(model), "--tokens", "100")
    assert done.returncode == 0, done.stderr
    *steps, last = done.stdout.splitlines()
    cached = [
        re.fullmatch(r"(\w+) +[\d.]+ ms +(\d+) of 100 cached", step).groups() for step in steps
    ]
    assert cached == [("plain", "0"), ("cold", "0"), ("host", "96"), ("disk", "96")]
    assert last == "all answers are equal"


@pytest.mark.parametrize("way", [[], ["--sync"]], ids=["async", "sync"])
def test_stream_tokens(decode_worker: str, model: Path, way: list[str]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    prompt = torch.tensor([tokenizer.encode(PROMPT)])
    plain = AutoModelForCausalLM.from_pretrained(model).generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12, do_sample=False
    )[0, prompt.shape[1] :]
    done = run("stream_tokens.py", decode_worker, str(model), PROMPT, "--max-tokens", "12", *way)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tokenizer.decode(plain)}\n{len(plain)} tokens\n"


@pytest.mark.parametrize("way", [[], ["--sync"]], ids=["async", "sync"])
def test_stream_tokens_is_cancelled(decode_worker: str, model: Path, way: list[str]) -> None:
    asked = [decode_worker, str(model), PROMPT, "--max-tokens", "400", "--stop-after", "3"]
    done = run("stream_tokens.py", *asked, *way)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("\n3 tokens\n")


@pytest.mark.parametrize("way", [[], ["--sync"]], ids=["async", "sync"])
def test_stream_tokens_ends_at_its_deadline(
    decode_worker: str, model: Path, way: list[str]
) -> None:
    asked = [decode_worker, str(model), PROMPT, "--max-tokens", "400", "--deadline", "0.000001"]
    done = run("stream_tokens.py", *asked, *way)
    assert done.returncode == 1
    assert done.stderr.strip().startswith("DEADLINE_EXCEEDED")


def test_stream_tokens_says_why_it_failed(decode_worker: str, model: Path) -> None:
    done = run("stream_tokens.py", decode_worker, str(model), PROMPT, "--max-tokens", "100000")
    assert done.returncode == 1
    assert re.search("INVALID_ARGUMENT: .*max_tokens", done.stderr)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{unused.getsockname()[1]}"
        done = run("stream_tokens.py", nobody, str(model), PROMPT, "--sync")
    assert done.returncode == 1
    assert done.stderr.strip().startswith("UNAVAILABLE")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_openai_client(model: Path, tmp_path: Path) -> None:
    sizes = ["--set", "node.host=16MiB"]
    with running("serve", "--model", str(model), "--port", "0", *sizes, folder=tmp_path) as process:
        assert process.stdout is not None
        base_url = process.stdout.readline().split()[2].rstrip(",")
        done = run("openai_client.py", base_url)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=DEADLINE_S)
    assert done.returncode == 0, done.stderr
    found = re.search(r"(\d+) of (\d+) prompt tokens were cached\n$", done.stdout)
    assert found
    assert 0 < int(found[1]) < int(found[2])
    assert process.returncode == 0

"""Workers as processes: told to stop, killed, and left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from decode_worker.wire.v1.decode_pb2_grpc import DecodeServiceStub
from kvstore.node.config import NodeConfig
from kvstore.testing.node_process import node_process
from model_runner.testing import Reference, plain_generate, small_checkpoint
from model_runner.wire.v1.generation_pb2 import (
    FINISH_REASON_LENGTH,
    GenerateChunk,
    GenerateRequest,
    SamplingParams,
)
from prefill_worker.wire.v1.prefill_pb2_grpc import PrefillServiceStub

KVSTORE = str(Path(sys.executable).with_name("kvstore"))
DEADLINE_S = 60
PROMPT = [20 + i % 200 for i in range(380)]
SLOW = ("max_batch_tokens=1",)
"""A step for each token: so that there is time to do something meanwhile."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_checkpoint(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> Reference:
    return plain_generate(checkpoint)


@dataclass
class WorkerProcess:
    kind: str
    process: subprocess.Popen[str]
    address: str

    def call(self, channel: Any, max_tokens: int, prompt: Sequence[int] = PROMPT) -> Any:
        request = GenerateRequest(
            request_id="r",
            model="tiny",
            prompt_token_ids=prompt,
            sampling=SamplingParams(max_tokens=max_tokens, ignore_eos=True),
        )
        if self.kind == "decode":
            return DecodeServiceStub(channel).Generate(request, timeout=DEADLINE_S)
        return PrefillServiceStub(channel).Prefill(request, timeout=DEADLINE_S)

    def cpu_s(self) -> float:
        stat = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(") ")[2].split()
        return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")


@pytest.fixture
def start(checkpoint: Path, tmp_path: Path) -> Iterator[Any]:
    processes = []

    def start(kind: str, *assignments: str) -> WorkerProcess:
        settings = ("block_size_tokens=4", "device_blocks=128", "threads=1", *assignments)
        flags = [word for one in settings for word in ("--set", f"{kind}.{one}")]
        process = subprocess.Popen(
            [KVSTORE, kind, "--model", str(checkpoint), *flags],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        assert process.stdout is not None
        ready = process.stdout.readline()
        assert ready.startswith(f"{kind} ready: "), ready
        address = ready.partition("grpc_address=")[2].split()[0]
        return WorkerProcess(kind, process, address)

    yield start
    for process in processes:
        process.kill()
        process.communicate()


class Reader:
    """Reads a stream in a thread of its own."""

    def __init__(self, stream: Any) -> None:
        self.chunks: list[GenerateChunk] = []
        self.error: grpc.RpcError | None = None
        self._thread = threading.Thread(target=self._read, args=(stream,))
        self._thread.start()

    @property
    def tokens(self) -> list[int]:
        return [token for chunk in self.chunks for token in chunk.token_ids]

    def wait(self) -> None:
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()

    def _read(self, stream: Any) -> None:
        try:
            for chunk in stream:
                self.chunks.append(chunk)
        except grpc.RpcError as error:
            self.error = error


@pytest.mark.parametrize("kind", ["prefill", "decode"])
def test_a_worker_sleeps_when_idle_and_finishes_what_runs_when_told_to_end(
    start: Any, reference: Reference, kind: str
) -> None:
    num_tokens = 100 if kind == "decode" else 1
    worker = start(kind, "metrics_address=127.0.0.1:0", *SLOW)
    with ExitStack() as stack:
        channel, other = (
            stack.enter_context(grpc.insecure_channel(worker.address)) for _ in range(2)
        )
        assert len(list(worker.call(other, 1, PROMPT[:2]))) > 0
        _assert_sleeps(worker)
        running = Reader(worker.call(channel, num_tokens))
        busy_s = worker.cpu_s() + 0.05
        _until(lambda: worker.cpu_s() > busy_s)
        worker.process.send_signal(signal.SIGTERM)
        refused = _refusal(worker, other)
        running.wait()
    assert running.error is None
    assert running.tokens == reference(PROMPT, num_tokens)
    # A call that arrives as the last ones end is cancelled by the server: unavailable, to clients.
    assert refused.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    assert worker.process.wait(DEADLINE_S) == 0


def _assert_sleeps(worker: WorkerProcess) -> None:
    """Nothing polls, and no thread of the model goes on spinning after it has served."""
    time.sleep(0.5)
    before_s, window_s = worker.cpu_s(), 2.0
    time.sleep(window_s)
    assert worker.cpu_s() - before_s <= 0.02 * window_s


def _until(holds: Any) -> None:
    for _ in range(DEADLINE_S * 100):
        if holds():
            return
        time.sleep(0.01)
    raise AssertionError("it does not come to that")


def _refusal(worker: WorkerProcess, channel: Any) -> Any:
    """The answer to requests of one token, once they are refused."""
    for _ in range(DEADLINE_S * 100):
        try:
            list(worker.call(channel, 1, PROMPT[:2]))
        except grpc.RpcError as error:
            return error
    raise AssertionError("it goes on serving")


def test_a_prefill_worker_killed_during_the_hand_off_costs_no_token(
    start: Any, reference: Reference, tmp_path: Path
) -> None:
    """Its blocks come in part, or not at all; the decode worker computes the others."""
    config = NodeConfig.model_validate({"host": "16MiB", "arena_folder": str(tmp_path)})
    with ExitStack() as stack:
        node = f"node={stack.enter_context(node_process(config)).zmq_endpoint}"
        prefill = start("prefill", node, *SLOW)
        decode = start("decode", node, "fetch_deadline_s=0.5")
        channels = [
            stack.enter_context(grpc.insecure_channel(worker.address))
            for worker in (prefill, decode)
        ]
        computing = Reader(prefill.call(channels[0], 1))
        busy_s = prefill.cpu_s() + 0.1
        _until(lambda: prefill.cpu_s() > busy_s)
        during = Reader(decode.call(channels[1], 8))
        prefill.process.kill()
        for reader in (during, computing):
            reader.wait()
    assert computing.error is not None, "it was killed too late"
    assert during.error is None
    assert during.tokens == reference(PROMPT, 8)
    assert during.chunks[-1].finish_reason == FINISH_REASON_LENGTH

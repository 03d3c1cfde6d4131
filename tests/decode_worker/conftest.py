from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from decode_worker.worker import DecodeWorker
from model_runner.config import WorkerConfig
from model_runner.runner import ModelRunner
from model_runner.step import ForwardChunk
from model_runner.testing import Reference, plain_generate, small_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_checkpoint(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def reference(checkpoint: Path) -> Reference:
    return plain_generate(checkpoint)


@pytest.fixture
async def start_worker(checkpoint: Path) -> AsyncIterator[Callable[..., Awaitable[DecodeWorker]]]:
    workers = []

    async def start(**settings: Any) -> DecodeWorker:
        defaults = {"model": str(checkpoint), "block_size_tokens": 4, "device_blocks": 64}
        worker = DecodeWorker(WorkerConfig.model_validate(defaults | settings))
        await worker.start()
        workers.append(worker)
        return worker

    yield start
    for worker in workers:
        await worker.stop()


class Gate:
    """Lets model steps through one by one."""

    def __init__(self) -> None:
        self.entries = self.steps = 0
        self.entered = threading.Event()
        self._allowed = threading.Semaphore(0)

    def allow(self, steps: int) -> None:
        self._allowed.release(steps)

    def pass_through(self) -> None:
        self.entries += 1
        self.entered.set()
        assert self._allowed.acquire(timeout=30)
        self.steps += 1


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate, forward = Gate(), ModelRunner.forward

    def gated(self: ModelRunner, chunks: Sequence[ForwardChunk], *rest: Any) -> torch.Tensor:
        gate.pass_through()
        return forward(self, chunks, *rest)

    monkeypatch.setattr(ModelRunner, "forward", gated)
    yield gate
    gate.allow(1_000_000)

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from decode_worker.worker import DecodeWorker
from model_runner.config import WorkerConfig
from model_runner.runner import ModelRunner
from model_runner.step import ForwardChunk
from model_runner.tiny import SMALL, build_checkpoint

Reference = Callable[[Sequence[int], int], list[int]]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    return build_checkpoint(folder, texts=["a block of text to learn from"], shape=SMALL)


@pytest.fixture(scope="session")
def reference(checkpoint: Path) -> Reference:
    """(prompt, number of new tokens) -> what plain `generate` answers."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()

    def generate(prompt: Sequence[int], max_tokens: int) -> list[int]:
        with torch.inference_mode():
            tokens = model.generate(
                torch.tensor([list(prompt)]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
                max_new_tokens=max_tokens,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        return [int(token) for token in tokens[0, len(prompt) :]]

    return generate


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

    def gated(self: ModelRunner, chunks: Sequence[ForwardChunk]) -> torch.Tensor:
        gate.pass_through()
        return forward(self, chunks)

    monkeypatch.setattr(ModelRunner, "forward", gated)
    yield gate
    gate.allow(1_000_000)

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
from transformers import AutoModelForCausalLM

from decode_worker.worker import DecodeWorker
from kvstore.node.config import NodeConfig
from kvstore.node.daemon import Node
from model_runner.config import WorkerConfig
from model_runner.tiny import SMALL, build_checkpoint
from prefill_worker.worker import PrefillWorker

Reference: TypeAlias = Callable[[Sequence[int], int], list[int]]
Worker: TypeAlias = PrefillWorker | DecodeWorker


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
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    node = Node(NodeConfig.model_validate({"host": "4MiB", "arena_folder": str(tmp_path)}))
    await node.start()
    yield node
    await node.stop()


@pytest.fixture
async def start_worker(checkpoint: Path) -> AsyncIterator[Callable[..., Awaitable[Worker]]]:
    workers = []

    async def start(kind: type[Worker], **settings: Any) -> Worker:
        defaults = {"model": str(checkpoint), "block_size_tokens": 4, "device_blocks": 64}
        worker = kind(WorkerConfig.model_validate(defaults | settings))
        await worker.start()
        workers.append(worker)
        return worker

    yield start
    for worker in workers:
        await worker.stop()

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from decode_worker.worker import DecodeWorker
from kvstore.node.config import NodeConfig
from kvstore.node.daemon import Node
from model_runner.config import WorkerConfig
from model_runner.testing import Reference, plain_generate, small_checkpoint
from prefill_worker.worker import PrefillWorker

Worker: TypeAlias = PrefillWorker | DecodeWorker


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_checkpoint(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def reference(checkpoint: Path) -> Reference:
    return plain_generate(checkpoint)


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

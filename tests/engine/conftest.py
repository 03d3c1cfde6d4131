from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from model_runner.config import WorkerConfig
from model_runner.runner import ModelRunner
from model_runner.testing import Reference, plain_generate, small_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_checkpoint(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def make_runner(checkpoint: Path) -> Callable[..., ModelRunner]:
    def make(**settings: object) -> ModelRunner:
        config = {"model": str(checkpoint), "block_size_tokens": 4, "device_blocks": 64}
        return ModelRunner(WorkerConfig.model_validate(config | {"threads": 1} | settings))

    return make


@pytest.fixture(scope="session")
def reference(checkpoint: Path) -> Reference:
    return plain_generate(checkpoint)

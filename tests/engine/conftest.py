from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from model_runner.config import WorkerConfig
from model_runner.runner import ModelRunner
from model_runner.tiny import SMALL, build_checkpoint

Reference = Callable[[Sequence[int], int], list[int]]
"""(prompt, number of new tokens) -> what plain `generate` answers."""


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    return build_checkpoint(folder, texts=["a block of text to learn from"], shape=SMALL)


@pytest.fixture
def make_runner(checkpoint: Path) -> Callable[..., ModelRunner]:
    def make(**settings: object) -> ModelRunner:
        config = {"model": str(checkpoint), "block_size_tokens": 4, "device_blocks": 64}
        return ModelRunner(WorkerConfig.model_validate(config | settings))

    return make


@pytest.fixture(scope="session")
def reference(checkpoint: Path) -> Reference:
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

"""What all benchmarks of the engine share: the model, the prompts, and how large everything is."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from cluster.demo.model import own_texts
from model_runner.config import WorkerConfig
from model_runner.tiny import TinyShape, build_checkpoint

Prompt: TypeAlias = Sequence[int]

BLOCK_SIZE_TOKENS = 16
MODEL_NAME = "bench"
_NUM_SPECIAL_TOKENS = 8
"""The first of the vocabulary; prompts have none of them."""


SHAPE = TinyShape(768, 2048, 12, 12, 4, 8192, 8192)
"""88 M parameters."""


@dataclass(frozen=True, slots=True)
class EngineSize:
    """How much is measured. By default what the figures are defined by; tests take less."""

    shape: TinyShape = SHAPE
    num_sequences: int = 16
    short_tokens: int = 64
    """Of each short prompt, and of its answer."""
    long_tokens: int = 2048
    cached_share: float = 0.95
    longest_tokens: int = 4096
    quiet_tokens: int = 150
    """Of each running sequence, before and after a prompt arrives."""
    decode_rounds: int = 3
    prefill_rounds: int = 5
    arrivals: int = 2

    @property
    def cached_tokens(self) -> int:
        """Of a long prompt: whole blocks, no less than the share."""
        blocks = -(-self.long_tokens * self.cached_share // BLOCK_SIZE_TOKENS)
        return int(blocks) * BLOCK_SIZE_TOKENS

    def blocks_of(self, num_tokens: int) -> int:
        return -(-num_tokens // BLOCK_SIZE_TOKENS)


FULL = EngineSize()


class Prompts:
    """Random ones, each of them new, so that nothing is cached but what a benchmark put there.

    Reproducible: the same calls on the same `seed` give the same prompts.
    """

    def __init__(self, vocab_size: int, seed: int = 0) -> None:
        self._vocab_size = vocab_size
        self._random = random.Random(seed)  # noqa: S311

    def one(self, num_tokens: int) -> list[int]:
        return [
            self._random.randrange(_NUM_SPECIAL_TOKENS, self._vocab_size) for _ in range(num_tokens)
        ]

    def several(self, count: int, num_tokens: int) -> list[list[int]]:
        return [self.one(num_tokens) for _ in range(count)]


def model_folder(folder: Path, shape: TinyShape) -> Path:
    """The model in a scratch folder; made by whoever needs it first."""
    model = folder / "engine-model"
    if not model.exists():
        build_checkpoint(model, texts=own_texts(), shape=shape)
    return model


def vocab_size(model: Path) -> int:
    """The tokenizer learns from the project's texts, and may find less than was asked for."""
    from model_runner.loading import load_config

    size: int = load_config(model).get_text_config().vocab_size
    return size


def worker_config(model: Path, device_blocks: int, **settings: object) -> WorkerConfig:
    """With a deadline that a busy machine keeps: a late fetch would be a miss, and no figure."""
    common = {
        "model": str(model),
        "served_model_name": MODEL_NAME,
        "block_size_tokens": BLOCK_SIZE_TOKENS,
        "device_blocks": device_blocks,
        "fetch_deadline_s": 20.0,
    }
    return WorkerConfig.model_validate(common | settings)

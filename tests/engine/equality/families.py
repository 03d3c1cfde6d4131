"""Families of models, and prompts for them."""

from __future__ import annotations

import random
from pathlib import Path

import torch

from model_runner.config import WorkerConfig
from model_runner.families_testing import FAMILIES, VOCAB, ClearReference, family_checkpoint
from model_runner.runner import ModelRunner

BLOCK = 4
ANSWER_TOKENS = 8
LONG_ANSWER_TOKENS = 16


def make_prompt(length: int, seed: int = 0) -> list[int]:
    """Those of one seed begin alike."""
    rng = random.Random(seed)
    return [rng.randrange(2, VOCAB) for _ in range(length)]


class Family:
    """A checkpoint, what plain generation answers with it, and runners of it, used again and
    again."""

    def __init__(self, name: str, seed: int, folder: Path) -> None:
        self.name = name
        self.checkpoint = family_checkpoint(name, folder, seed)
        self.reference = ClearReference(self.checkpoint)
        self.config = WorkerConfig(model=str(self.checkpoint), block_size_tokens=BLOCK)
        self._idle: dict[int, list[ModelRunner]] = {}

    @property
    def windows_only(self) -> bool:
        """No layer sees all that came before."""
        return self.name == "mistral-sliding"

    @property
    def window_tokens(self) -> int:
        return int(FAMILIES[self.name].sliding_window)

    def small_device(self, device_blocks: int) -> int:
        """Too small for what is too much for so many blocks, where all are kept."""
        return 8 if self.windows_only else device_blocks

    def take(self, device_blocks: int) -> ModelRunner:
        idle = self._idle.setdefault(device_blocks, [])
        config = self.config.model_copy(update={"device_blocks": device_blocks})
        runner = idle.pop() if idle else ModelRunner(config)
        for cache in runner.caches:
            cache.tensor.fill_(torch.nan)  # what was never written must never count
        return runner

    def give_back(self, device_blocks: int, runner: ModelRunner) -> None:
        self._idle[device_blocks].append(runner)

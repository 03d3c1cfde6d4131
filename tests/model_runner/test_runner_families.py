"""Chunked paged prefill and paged decode, in one mixed batch, against plain transformers."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from model_runner.config import WorkerConfig
from model_runner.families_testing import FAMILIES, VOCAB, family_checkpoint
from model_runner.kv_groups import BlockTable, KVGroup
from model_runner.runner import ModelRunner
from model_runner.step import ForwardChunk

BLOCK = 4
NEW_TOKENS = 12


@dataclass
class Sequence:
    """One request of the mixed batch: `chunk` prompt tokens a step, then one at a time."""

    token_ids: list[int]
    chunk: int
    block_table: list[int]
    computed: int = 0

    def next_chunk(self, groups: Iterable[KVGroup]) -> ForwardChunk:
        """Tables without what is behind a group's window."""
        end = min(self.computed + self.chunk, len(self.token_ids))
        first = [group.first_seen(self.computed) for group in groups]
        tables = [BlockTable(self.block_table[f:], f) for f in first]
        return ForwardChunk(self.token_ids[self.computed : end], self.computed, tables)


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return family_checkpoint(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture
def runner(folder: Path) -> ModelRunner:
    config = WorkerConfig(model=str(folder), block_size_tokens=BLOCK, device_blocks=80, threads=1)
    runner = ModelRunner(config)
    for cache in runner.caches:
        cache.tensor.fill_(torch.nan)  # what was never written must never count
    return runner


@pytest.fixture
def reference(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def sequences() -> list[Sequence]:
    rng = random.Random(1)
    blocks = list(range(80))
    rng.shuffle(blocks)
    prompts = [(13, 1), (22, 5), (24, BLOCK), (30, 2 * BLOCK), (37, 64), (16, 64), (1, 64), (5, 3)]
    made = []
    for length, chunk in prompts:
        table = [blocks.pop() for _ in range((length + NEW_TOKENS) // BLOCK + 2)]
        made.append(Sequence([rng.randrange(2, VOCAB) for _ in range(length)], chunk, table))
    return made


@torch.inference_mode()
def test_equals_plain_generation(runner: ModelRunner, reference: PreTrainedModel) -> None:
    batch = sequences()
    prompts = [list(s.token_ids) for s in batch]
    logits: list[list[torch.Tensor]] = [[] for _ in batch]
    while any(len(rows) < NEW_TOKENS for rows in logits):
        live = [i for i, rows in enumerate(logits) if len(rows) < NEW_TOKENS]
        chunks = [batch[i].next_chunk(runner.groups) for i in live]
        for i, chunk, row in zip(live, chunks, runner.forward(chunks), strict=True):
            batch[i].computed = chunk.end
            if chunk.end == len(batch[i].token_ids):
                logits[i].append(row)
                batch[i].token_ids.append(int(row.argmax()))

    for sequence, prompt, rows in zip(batch, prompts, logits, strict=True):
        expected = reference.generate(
            torch.tensor([prompt]), max_new_tokens=NEW_TOKENS, do_sample=False,
            eos_token_id=None, attention_mask=torch.ones(1, len(prompt)),
        )[0].tolist()  # fmt: skip
        assert sequence.token_ids == expected
        plain = reference(torch.tensor([expected]), use_cache=False).logits[0]
        torch.testing.assert_close(
            torch.stack(rows), plain[len(prompt) - 1 : -1], atol=5e-4, rtol=0
        )

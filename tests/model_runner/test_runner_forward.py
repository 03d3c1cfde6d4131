from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from kvstore.core.ids import RequestId
from model_runner.config import WorkerConfig
from model_runner.kv_groups import BlockTable
from model_runner.runner import ModelRunner
from model_runner.sampling.sampler import InvalidLogitsError, SampledToken, sample
from model_runner.step import ForwardChunk
from model_runner.types import Request, SamplingParams

BLOCK = 16
PROMPT = [(7 * i) % 200 + 5 for i in range(40)]


def chunk(token_ids: list[int], start: int, block_ids: list[int]) -> ForwardChunk:
    return ForwardChunk(token_ids, start, [BlockTable(block_ids)])


def make_runner(checkpoint: Path, dtype: str = "float32") -> ModelRunner:
    return ModelRunner(WorkerConfig(model=str(checkpoint), device_blocks=16, dtype=dtype))


@pytest.fixture
def runner(small_checkpoint: Path) -> ModelRunner:
    return make_runner(small_checkpoint)


def test_a_block_that_held_nan_serves_the_next_request(runner: ModelRunner) -> None:
    """Masked keys are multiplied by zero, and zero times NaN is NaN."""
    prefill = chunk(PROMPT, 0, [3, 1, 2])
    decode = chunk([9], 40, [3, 1, 2])
    clean = [runner.forward([prefill]), runner.forward([decode])]
    runner.cache.tensor.fill_(math.nan)
    again = [runner.forward([prefill]), runner.forward([decode])]
    assert all(torch.equal(a, b) for a, b in zip(clean, again, strict=True))


def test_a_sequence_with_nan_fails_alone(runner: ModelRunner) -> None:
    healthy, sick = [0, 1, 2], [3, 4, 5]
    runner.forward([chunk(PROMPT, 0, healthy), chunk(PROMPT, 0, sick)])
    runner.cache.tensor[4] = math.nan
    step = [chunk([9], 40, healthy), chunk([9], 40, sick)]
    logits = runner.forward(step)
    requests = [Request(RequestId(name), [*PROMPT, 9], 40, SamplingParams()) for name in "ab"]
    tokens = sample(logits, requests, frozenset())
    assert tokens[0] == SampledToken(int(runner.forward(step[:1]).argmax()))
    assert isinstance(tokens[1], InvalidLogitsError)


def test_blocks_carry_a_prefix_to_another_worker(
    runner: ModelRunner, small_checkpoint: Path
) -> None:
    expected = runner.forward([chunk(PROMPT, 0, [0, 1, 2])])
    buffers = [memoryview(bytearray(runner.layout.block_bytes)) for _ in range(2)]
    runner.cache.export_blocks([0, 1], buffers)
    other = make_runner(small_checkpoint)
    assert other.identity == runner.identity
    other.cache.import_blocks([9, 5], buffers)
    logits = other.forward([chunk(PROMPT[32:], 32, [9, 5, 7])])
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    assert logits.argmax() == expected.argmax()


def test_sequences_share_the_blocks_of_a_common_prefix(runner: ModelRunner) -> None:
    runner.forward([chunk(PROMPT[:32], 0, [0, 1])])
    tails = [PROMPT[32:], [8, 7, 6]]
    shared = runner.forward([chunk(tail, 32, [0, 1, 2 + i]) for i, tail in enumerate(tails)])
    alone = [runner.forward([chunk([*PROMPT[:32], *tail], 0, [9, 10, 11])]) for tail in tails]
    torch.testing.assert_close(shared, torch.cat(alone), atol=1e-4, rtol=0)


def test_decodes_of_very_different_lengths_go_together(
    runner: ModelRunner, small_checkpoint: Path
) -> None:
    tables = [[0], [1], [2, 3], [4, 5, 6], [7, 8, 9, 10], [11, 12, 13, 14]]
    lengths = [2, 4, 17, 40, 63, 64]
    prompts = [[(i * n) % 190 + 5 for i in range(n)] for n in lengths]
    runner.forward([chunk(p[:-1], 0, t) for p, t in zip(prompts, tables, strict=True)])
    together = runner.forward(
        [chunk(p[-1:], len(p) - 1, t) for p, t in zip(prompts, tables, strict=True)]
    )
    plain = AutoModelForCausalLM.from_pretrained(small_checkpoint)
    for prompt, row in zip(prompts, together, strict=True):
        with torch.inference_mode():
            expected = plain(torch.tensor([prompt])).logits[0, -1]
        torch.testing.assert_close(row, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_close_to_full(
    runner: ModelRunner, small_checkpoint: Path, dtype: str
) -> None:
    half = make_runner(small_checkpoint, dtype)
    assert half.layout.block_bytes * 2 == runner.layout.block_bytes
    chunks = [chunk(PROMPT, 0, [0, 1, 2]), chunk(PROMPT[:5], 0, [4])]
    full_logits, half_logits = runner.forward(chunks), half.forward(chunks)
    assert half_logits.dtype == torch.float32
    similarity = torch.cosine_similarity(full_logits, half_logits, dim=-1)
    assert similarity.min() > 0.99


def test_a_table_too_short_for_its_chunk_is_a_programmer_error(runner: ModelRunner) -> None:
    with pytest.raises(AssertionError):
        runner.forward([chunk(PROMPT, 0, [0, 1])])
    with pytest.raises(AssertionError):
        runner.forward([chunk([], 0, [0])])
    with pytest.raises(AssertionError):
        runner.forward([])

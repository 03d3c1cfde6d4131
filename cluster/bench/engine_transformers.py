"""The same answers by `transformers` alone, in this process: what the engine is held against."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

from cluster.bench.engine_setup import EngineSize, Prompt
from model_runner.loading import no_progress_bar

_PAGE_TOKENS = 256
_NO_EOS = -1


def plain_model(folder: Path) -> Any:
    with no_progress_bar():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def generate_one_by_one(
    model: Any, prompts: Sequence[Prompt], new_tokens: int
) -> Iterator[list[int]]:
    for prompt in prompts:
        yield from generate_batched(model, [prompt], new_tokens)


@torch.inference_mode()
def generate_batched(model: Any, prompts: Sequence[Prompt], new_tokens: int) -> list[list[int]]:
    """`model.generate` on prompts of one length, with its dense cache: greedy, past EOS."""
    inputs = torch.tensor(prompts)
    tokens = model.generate(
        inputs,
        attention_mask=torch.ones_like(inputs),
        max_new_tokens=new_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    answers: list[list[int]] = tokens[:, inputs.shape[1] :].tolist()
    return answers


class ContinuousBatching:
    """`generate_batch`. Its manager, with cache and thread, lives on from call to call, so that
    setting it up is not what is measured."""

    def __init__(self, model: Any, size: EngineSize) -> None:
        """The model is its own: attention is exchanged in it."""
        self._model = model
        self._options = GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=size.short_tokens, do_sample=False, eos_token_id=_NO_EOS, pad_token_id=0
        )
        pages = -(-2 * size.short_tokens // _PAGE_TOKENS) * size.num_sequences
        self._batching = ContinuousBatchingConfig(
            page_size=_PAGE_TOKENS,
            num_blocks=2 * pages,
            max_batch_tokens=max(_PAGE_TOKENS, size.num_sequences * size.short_tokens),
            max_requests_per_batch=size.num_sequences,
        )

    def answer(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        results = self._model.generate_batch(
            [list(prompt) for prompt in prompts],
            self._options,
            self._batching,
            persistent_manager=True,
        )
        return [list(result.generated_tokens) for result in results.values()]

    def close(self) -> None:
        self._model.destroy_cached_continuous_batching_manager()


@contextmanager
def continuous_batching(model: Any, size: EngineSize) -> Iterator[ContinuousBatching]:
    """It warns with every call, of what is meant so here."""
    logger = logging.getLogger("ContinuousBatchingLogger")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    batching = ContinuousBatching(model, size)
    try:
        yield batching
    finally:
        batching.close()
        logger.setLevel(level)

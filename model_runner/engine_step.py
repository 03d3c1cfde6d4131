"""One step of a model: chunks in, the tokens that follow them out."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Protocol, TypeAlias

import torch

from kvstore.core.errors import KVStoreError
from kvstore.core.layout import KVLayout
from kvstore.tiers.device.cache import DeviceCache
from model_runner.sampling import sample
from model_runner.step import ForwardChunk
from model_runner.types import Chunk

StepResult: TypeAlias = int | KVStoreError | None
"""The next token; None while the prompt is not computed to its end; or why there is none."""


class StepModel(Protocol):
    """What an engine needs of a model. `ModelRunner` is one."""

    @property
    def layout(self) -> KVLayout: ...

    @property
    def cache(self) -> DeviceCache: ...

    @property
    def eos_token_ids(self) -> Set[int]: ...

    def forward(self, chunks: Sequence[ForwardChunk]) -> torch.Tensor:
        """`[chunk, vocab]` float32 logits of each chunk's last token."""


def compute_step(model: StepModel, chunks: Sequence[Chunk]) -> Sequence[StepResult]:
    """Compute the KV of all chunks, and a token for each request that has none left to compute.

    Changes no request. Raises what the model raises.
    """
    logits = model.forward([_forward_chunk(chunk) for chunk in chunks])
    rows = [row for row, chunk in enumerate(chunks) if _ends(chunk)]
    results: list[StepResult] = [None] * len(chunks)
    if rows:
        ending = [chunks[row].request for row in rows]
        tokens = sample(logits[rows], [r.sampling for r in ending], [len(r) for r in ending])
        for row, token in zip(rows, tokens, strict=True):
            results[row] = token
    return results


def _forward_chunk(chunk: Chunk) -> ForwardChunk:
    request, start = chunk.request, chunk.request.num_computed
    return ForwardChunk(
        request.token_ids[start : start + chunk.num_tokens], start, request.block_table
    )


def _ends(chunk: Chunk) -> bool:
    return chunk.num_tokens == chunk.request.num_uncomputed

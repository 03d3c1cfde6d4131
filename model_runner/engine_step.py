"""One step of a model: chunks in, the tokens that follow them out."""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol, TypeAlias

import torch

from kvstore.core.errors import KVStoreError
from kvstore.tiers.device.cache import DeviceCache
from model_runner.attention import OnLayer
from model_runner.kv_groups import KVGroup
from model_runner.sampling.logprobs import TokenLogprobs, tell_logprobs
from model_runner.sampling.sampler import InvalidLogitsError, SampledToken, sample
from model_runner.step import ForwardChunk
from model_runner.types import Chunk, Request


@dataclass(frozen=True, slots=True)
class Computed:
    """What came of a chunk."""

    sampled: SampledToken | None = None
    """None while the prompt is not computed to its end."""
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    """Of the prompt tokens that follow the chunk's tokens, where they are asked for."""


StepResult: TypeAlias = Computed | KVStoreError
"""Or why nothing came of it."""


class StepModel(Protocol):
    """What an engine needs of a model. `ModelRunner` is one."""

    @property
    def groups(self) -> Sequence[KVGroup]: ...

    @property
    def caches(self) -> Sequence[DeviceCache]:
        """Of each group."""

    @property
    def eos_token_ids(self) -> Set[int]: ...

    def forward(
        self, chunks: Sequence[ForwardChunk], on_layer: OnLayer | None = None
    ) -> torch.Tensor:
        """`[row, vocab]` float32 logits: of each chunk's last token, or of all of its tokens with
        `all_logits`. Tells `on_layer` of each layer, once."""


def room_tokens(model: StepModel) -> int | None:
    """How long a request may become that has the device tier to itself; None = unlimited."""
    rooms = [
        group.room_tokens(cache.num_blocks)
        for group, cache in zip(model.groups, model.caches, strict=True)
    ]
    return min((room for room in rooms if room is not None), default=None)


def compute_step(
    model: StepModel, chunks: Sequence[Chunk], on_layer: OnLayer | None = None
) -> Sequence[StepResult]:
    """Compute the KV of all chunks, and a token for each request that has none left to compute.

    Changes no request but for its `sampling_state`. Raises what the model raises.
    """
    inputs = [_forward_chunk(chunk) for chunk in chunks]
    logits = model.forward(inputs, on_layer)
    ends = list(accumulate(one.num_logits for one in inputs))
    results: list[StepResult] = [Computed()] * len(chunks)
    for number, one in enumerate(inputs):
        if one.all_logits:
            rows = logits[ends[number] - one.num_logits : ends[number]]
            results[number] = _prompt_logprobs(rows, one, chunks[number].request)
    _sample_ends(logits, [end - 1 for end in ends], chunks, results, model.eos_token_ids)
    return results


def _sample_ends(
    logits: torch.Tensor,
    last_rows: Sequence[int],
    chunks: Sequence[Chunk],
    results: list[StepResult],
    eos_token_ids: Set[int],
) -> None:
    """Add the next token to the results of those that are computed to their end."""
    ending = [n for n, chunk in enumerate(chunks) if _ends(chunk)]
    if not ending:
        return
    rows = [last_rows[n] for n in ending]
    own = logits if len(rows) == len(logits) else logits[rows]
    outcomes = sample(own, [chunks[n].request for n in ending], eos_token_ids)
    for n, outcome in zip(ending, outcomes, strict=True):
        before = results[n]
        if isinstance(outcome, KVStoreError):
            results[n] = outcome
        elif isinstance(before, Computed):
            results[n] = Computed(outcome, before.prompt_logprobs)


def _prompt_logprobs(logits: torch.Tensor, inputs: ForwardChunk, request: Request) -> StepResult:
    """Of the prompt tokens after the first of `inputs`, each from the logits of the one before."""
    end = min(inputs.end + 1, request.num_prompt_tokens)
    targets = request.token_ids[inputs.start + 1 : end]
    count = request.sampling.prompt_logprobs
    assert count is not None
    told = tell_logprobs(logits[: len(targets)].log_softmax(-1), targets, [count] * len(targets))
    for position, one in enumerate(told, inputs.start + 1):
        if math.isnan(one.logprob):
            return InvalidLogitsError(f"logits at position {position} are not finite")
    return Computed(prompt_logprobs=tuple(told))


def _forward_chunk(chunk: Chunk) -> ForwardChunk:
    request, start = chunk.request, chunk.request.num_computed
    asked = request.sampling.prompt_logprobs is not None and not request.prompt_told
    return ForwardChunk(
        request.token_ids[start : start + chunk.num_tokens],
        start,
        request.block_tables,
        all_logits=asked and start + 1 < request.num_prompt_tokens,
    )


def _ends(chunk: Chunk) -> bool:
    return chunk.num_tokens == chunk.request.num_uncomputed

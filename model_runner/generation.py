"""Generation requests as they arrive, checked field by field, and answers as they leave."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from kvstore.core.errors import InvalidArgumentError
from kvstore.core.identity import ModelIdentity
from kvstore.core.ids import RequestId
from kvstore.tiers.base import TierKind
from model_runner.engine_output import EngineOutput, FirstOutput
from model_runner.sampling.logprobs import TokenLogprobs
from model_runner.sampling.validate import validate
from model_runner.types import FinishReason, Request, SamplingParams
from model_runner.wire.v1 import generation_pb2 as wire

_FINISH_REASONS = {
    None: wire.FINISH_REASON_UNSPECIFIED,
    FinishReason.STOP: wire.FINISH_REASON_STOP,
    FinishReason.LENGTH: wire.FINISH_REASON_LENGTH,
    FinishReason.CANCELLED: wire.FINISH_REASON_UNSPECIFIED,
}

MAX_PRIORITY = 100
"""Either way."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What a worker serves: all that a conductor or a client has to know of it."""

    name: str
    identity: ModelIdentity
    vocab_size: int
    max_context_tokens: int
    """Longest prompt and answer together: the model's limit, or the device tier's if smaller."""
    path: str
    """Where the tokenizer can be loaded from."""


def read_request(
    message: wire.GenerateRequest,
    request_id: RequestId,
    model: ServedModel,
    draw_seed: Callable[[], int],
) -> Request:
    """Raises InvalidArgumentError, naming the field and what it accepts.

    `draw_seed` gives a seed to a request that samples and brought none.
    """
    if message.model != model.name:
        raise InvalidArgumentError(f"model {message.model!r} is not served here: {model.name!r} is")
    prompt, output = message.prompt_token_ids, message.output_token_ids
    if not prompt:
        raise InvalidArgumentError("prompt_token_ids is empty: give at least one token")
    _check_tokens("prompt_token_ids", prompt, model.vocab_size)
    _check_tokens("output_token_ids", output, model.vocab_size)
    sampling = _sampling(message.sampling, draw_seed)
    validate(sampling, model.max_context_tokens, model.vocab_size)
    _check_length(len(prompt), len(output), sampling.max_tokens, model.max_context_tokens)
    _check_priority(message.priority)
    return Request(
        request_id=request_id,
        token_ids=[*prompt, *output],
        num_prompt_tokens=len(prompt),
        sampling=sampling,
        identity_root=replace(model.identity, tenant_salt=message.cache_salt).root(),
        bypass_cache=message.bypass_cache,
        priority=message.priority,
    )


def to_chunk(output: EngineOutput) -> wire.GenerateChunk:
    chunk = wire.GenerateChunk(
        token_ids=output.token_ids,
        finish_reason=_FINISH_REASONS[output.finish_reason],
        published=output.published,
        logprobs=[_logprobs(one) for one in output.logprobs],
        prompt_logprobs=[_logprobs(one) for one in output.prompt_logprobs],
    )
    if output.first is not None:
        _add_first(chunk, output.first)
    return chunk


def _logprobs(told: TokenLogprobs) -> wire.TokenLogprobs:
    return wire.TokenLogprobs(
        logprob=told.logprob, top_token_ids=told.top_token_ids, top_logprobs=told.top_logprobs
    )


def _add_first(chunk: wire.GenerateChunk, first: FirstOutput) -> None:
    hits = first.hit_tokens
    chunk.hit_tokens.device = hits.get(TierKind.DEVICE, 0)
    chunk.hit_tokens.host = hits.get(TierKind.HOST, 0)
    chunk.hit_tokens.disk = hits.get(TierKind.DISK, 0)
    chunk.hit_tokens.remote = hits.get(TierKind.REMOTE, 0)
    for reason, blocks in first.missed_blocks.items():
        chunk.missed_blocks[reason] = blocks
    chunk.queue_s = first.queue_s
    chunk.compute_s = first.compute_s


def _check_tokens(field: str, token_ids: Sequence[int], vocab_size: int) -> None:
    if token_ids and max(token_ids) >= vocab_size:
        raise InvalidArgumentError(
            f"{field} has token {max(token_ids)}, the vocabulary ends at {vocab_size - 1}"
        )


def _check_length(prompt: int, output: int, max_tokens: int, max_context_tokens: int) -> None:
    if prompt + max_tokens > max_context_tokens:
        raise InvalidArgumentError(
            f"the prompt has {prompt} tokens and max_tokens is {max_tokens}: together "
            f"{prompt + max_tokens}, and the context holds {max_context_tokens}"
        )
    if output >= max_tokens:
        raise InvalidArgumentError(
            f"output_token_ids has {output} tokens and max_tokens, which counts them, is "
            f"{max_tokens}: nothing is left to generate"
        )


def _check_priority(priority: int) -> None:
    if abs(priority) > MAX_PRIORITY:
        raise InvalidArgumentError(
            f"priority must be from {-MAX_PRIORITY} to {MAX_PRIORITY}, got {priority}"
        )


def _sampling(message: wire.SamplingParams, draw_seed: Callable[[], int]) -> SamplingParams:
    seed = message.seed if message.HasField("seed") else None
    if seed is None and message.temperature > 0:
        seed = draw_seed()
    return SamplingParams(
        temperature=message.temperature,
        top_p=message.top_p or 1.0,
        top_k=message.top_k,
        seed=seed,
        max_tokens=message.max_tokens,
        ignore_eos=message.ignore_eos,
        stop_token_ids=frozenset(message.stop_token_ids),
        min_p=message.min_p,
        repetition_penalty=message.repetition_penalty or 1.0,
        presence_penalty=message.presence_penalty,
        frequency_penalty=message.frequency_penalty,
        logit_bias=dict(message.logit_bias),
        bad_words=tuple(tuple(word.token_ids) for word in message.bad_words),
        min_tokens=message.min_tokens,
        logprobs=message.logprobs if message.HasField("logprobs") else None,
        prompt_logprobs=message.prompt_logprobs if message.HasField("prompt_logprobs") else None,
    )

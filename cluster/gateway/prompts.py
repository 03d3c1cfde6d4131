"""From what a client sent to what a worker computes: token ids, bounds, routing keys."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import jinja2

from cluster.gateway.errors import BadFieldError, ContextLengthError
from cluster.gateway.schemas import ChatMessage, GenerationFields, Prompt
from cluster.wire.v1 import conductor_pb2 as conductor
from kvstore.core.hashing import block_hashes
from model_runner.wire.v1 import generation_pb2 as generation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Job:
    """One prompt to be answered."""

    request_id: str
    model: conductor.ModelInfo
    prompt_token_ids: list[int]
    routing_keys: bytes
    sampling: generation.SamplingParams
    bypass_cache: bool


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    token_ids = tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
    if not token_ids:
        raise BadFieldError("prompt", "must not be empty")
    return token_ids


def encode_chat(tokenizer: PreTrainedTokenizerBase, messages: Sequence[ChatMessage]) -> list[int]:
    """Token ids of a conversation up to where the assistant's answer begins.

    Raises BadFieldError if the model has no chat template, or if its template refuses `messages`.
    """
    if tokenizer.chat_template is None:
        raise BadFieldError("messages", "the model has no chat template; use /v1/completions")
    conversation = [message.model_dump() for message in messages]
    try:
        token_ids = tokenizer.apply_chat_template(
            conversation, add_generation_prompt=True, return_dict=False
        )
    except (jinja2.TemplateError, TypeError) as error:
        # Templates concatenate what they are given, so a null content fails as a TypeError.
        raise BadFieldError("messages", f"the chat template refused them: {error}") from error
    return cast("list[int]", token_ids)


def answer_tokens_max(
    prompt_tokens: int, context_tokens: int, asked: int | None, default: int | None
) -> int:
    """Length of the answer at most: what was asked for, else `default`, else what the context has
    room for.

    Raises ContextLengthError if prompt and answer do not fit.
    """
    room = context_tokens - prompt_tokens
    if room < 1:
        raise ContextLengthError(
            f"this model's maximum context length is {context_tokens} tokens, but the prompt has "
            f"{prompt_tokens} and leaves no room for an answer; shorten the prompt"
        )
    if asked is None:
        return room if default is None else min(default, room)
    if asked > room:
        raise ContextLengthError(
            f"this model's maximum context length is {context_tokens} tokens, but "
            f"{prompt_tokens + asked} were requested ({prompt_tokens} in the prompt, {asked} for "
            "the answer); shorten either"
        )
    return asked


def routing_keys(model: conductor.ModelInfo, token_ids: Sequence[int]) -> bytes:
    """First 8 bytes of the hash of each full block: `ids.routing_key`s as they have it on the
    wire."""
    hashes = block_hashes(model.identity_root, token_ids, model.layout.block_size_tokens)
    return b"".join(block_hash[:8] for block_hash in hashes)


def sampling_params(fields: GenerationFields, max_tokens: int) -> generation.SamplingParams:
    """The seed is drawn here when none is given: a worker that takes over samples the same
    tokens."""
    seed = secrets.randbits(64) if fields.seed is None else fields.seed % 2**64
    return generation.SamplingParams(
        temperature=fields.temperature,
        top_p=fields.top_p,
        top_k=fields.top_k,
        seed=seed,
        max_tokens=max_tokens,
        ignore_eos=fields.ignore_eos,
    )


def build_job(
    request_id: str,
    model: conductor.ModelInfo,
    token_ids: list[int],
    fields: GenerationFields,
    asked_tokens: int | None,
    default_tokens: int | None,
) -> Job:
    """Raises ContextLengthError if the prompt and its answer do not fit into the context."""
    max_tokens = answer_tokens_max(
        len(token_ids), model.max_context_tokens, asked_tokens, default_tokens
    )
    return Job(
        request_id=request_id,
        model=model,
        prompt_token_ids=token_ids,
        routing_keys=routing_keys(model, token_ids) if fields.cache else b"",
        sampling=sampling_params(fields, max_tokens),
        bypass_cache=not fields.cache,
    )

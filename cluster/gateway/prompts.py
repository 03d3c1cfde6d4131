"""From what a client sent to what a worker computes: token ids, bounds, routing keys."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cluster.conductor.prompt_keys import PromptKeys
from cluster.conductor.routing_keys import RoutingKeys
from cluster.gateway.errors import BadFieldError, ContextLengthError
from cluster.gateway.fields import Prompt
from cluster.gateway.schemas import GenerationFields
from cluster.gateway.wishes import Wishes
from cluster.wire.v1 import conductor_pb2 as conductor
from kvstore.core.identity import salted_root
from model_runner.sampling.random_stream import choice_seed
from model_runner.wire.v1 import generation_pb2 as generation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Job:
    """One sample of one prompt."""

    request_id: str
    model: conductor.ModelInfo
    prompt_token_ids: list[int]
    routing_keys: bytes
    sampling: generation.SamplingParams
    bypass_cache: bool
    priority: int
    """Larger goes first, as workers have it."""
    wishes: Wishes


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    token_ids = tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
    if not token_ids:
        raise BadFieldError("prompt", "must not be empty")
    return token_ids


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


def bad_word_ids(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> list[list[int]]:
    """Each word as it is at the beginning of a text, and behind a space: most tokenizers spell
    these differently."""
    spellings = [spelling for word in words for spelling in (word, " " + word.lstrip())]
    encoded = (tokenizer.encode(s, add_special_tokens=False) for s in spellings)
    return [list(ids) for ids in dict.fromkeys(tuple(ids) for ids in encoded) if ids]


def sampling_params(
    tokenizer: PreTrainedTokenizerBase, fields: GenerationFields, max_tokens: int
) -> generation.SamplingParams:
    """The seed is drawn here when none is given: a worker that takes over samples the same
    tokens."""
    if fields.min_tokens > max_tokens:
        raise BadFieldError(
            "min_tokens", f"{fields.min_tokens} is more than the answer's {max_tokens} at most"
        )
    seed = secrets.randbits(64) if fields.seed is None else fields.seed % 2**64
    logprobs = fields.logprobs_asked
    words = bad_word_ids(tokenizer, fields.bad_words)
    return generation.SamplingParams(
        temperature=fields.temperature,
        top_p=fields.top_p,
        top_k=fields.top_k,
        seed=seed,
        max_tokens=max_tokens,
        ignore_eos=fields.ignore_eos,
        stop_token_ids=fields.stop_token_ids,
        min_p=fields.min_p,
        repetition_penalty=fields.repetition_penalty,
        presence_penalty=fields.presence_penalty,
        frequency_penalty=fields.frequency_penalty,
        logit_bias=fields.logit_bias,
        bad_words=[generation.TokenSequence(token_ids=ids) for ids in words],
        min_tokens=fields.min_tokens,
        logprobs=logprobs,
        prompt_logprobs=logprobs if fields.echoes else None,
    )


def build_jobs(
    answer_id: str,
    model: conductor.ModelInfo,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    fields: GenerationFields,
    wishes: Wishes,
    asked_tokens: int | None,
    default_tokens: int | None,
    prompt_keys: PromptKeys,
) -> list[Job]:
    """`n` for each prompt, one prompt after another: that is the order of choices in an answer.

    Raises ContextLengthError if a prompt and its answer do not fit into the context.
    """
    jobs: list[Job] = []
    root = salted_root(model.identity_root, wishes.tenant.cache_salt)
    for token_ids in prompts:
        max_tokens = answer_tokens_max(
            len(token_ids), model.max_context_tokens, asked_tokens, default_tokens
        )
        keys = RoutingKeys()
        if fields.cache:
            keys = prompt_keys.of(root, token_ids, model.layout.block_size_tokens)
        params = sampling_params(tokenizer, fields, max_tokens)
        jobs += [
            Job(
                request_id=f"{answer_id}-{len(jobs) + choice}",
                model=model,
                prompt_token_ids=token_ids,
                routing_keys=keys.packed,
                sampling=_of_choice(params, choice),
                bypass_cache=not fields.cache,
                priority=-fields.priority,
                wishes=wishes,
            )
            for choice in range(fields.n)
        ]
    return jobs


def _of_choice(params: generation.SamplingParams, choice: int) -> generation.SamplingParams:
    own = generation.SamplingParams()
    own.CopyFrom(params)
    own.seed = choice_seed(params.seed, choice)
    return own

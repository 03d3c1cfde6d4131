"""What sampling settings may be."""

from __future__ import annotations

import math

from kvstore.core.errors import InvalidArgumentError
from model_runner.types import SamplingParams

LOGPROBS_MAX = 20
"""Of the most probable tokens, at most so many are told."""
BIASED_TOKENS_MAX = 1024
BAD_WORDS_MAX = 1024


def validate(params: SamplingParams, max_context_tokens: int, vocab_size: int) -> None:
    """Raises InvalidArgumentError, naming the field and what it accepts."""
    _check_randomness(params)
    _check_penalties(params)
    _check_length(params, max_context_tokens)
    _check_logprobs(params)
    _check_token_ids(params, vocab_size)


def _check_randomness(params: SamplingParams) -> None:
    temperature, seed = params.temperature, params.seed
    _require("temperature", temperature, 0 <= temperature < math.inf, "finite, 0 or more")
    _require("top_p", params.top_p, 0 < params.top_p <= 1, "above 0, up to 1")
    _require("top_k", params.top_k, params.top_k >= 0, "0 (off) or more")
    _require("min_p", params.min_p, 0 <= params.min_p <= 1, "from 0 (off) to 1")
    _require("seed", seed, seed is None or 0 <= seed < 2**64, "from 0 to 2^64 - 1")


def _check_penalties(params: SamplingParams) -> None:
    repetition = params.repetition_penalty
    _require("repetition_penalty", repetition, 0 < repetition < math.inf, "finite, above 0")
    for field, value in (
        ("presence_penalty", params.presence_penalty),
        ("frequency_penalty", params.frequency_penalty),
    ):
        _require(field, value, -2 <= value <= 2, "from -2 to 2")
    for value in params.logit_bias.values():
        _require("logit_bias", value, -100 <= value <= 100, "from -100 to 100 each")


def _check_length(params: SamplingParams, max_context_tokens: int) -> None:
    tokens, least = params.max_tokens, params.min_tokens
    _require(
        "max_tokens", tokens, 1 <= tokens <= max_context_tokens, f"from 1 to {max_context_tokens}"
    )
    _require("min_tokens", least, 0 <= least <= tokens, f"from 0 to max_tokens ({tokens})")


def _check_logprobs(params: SamplingParams) -> None:
    for field, count in (
        ("logprobs", params.logprobs),
        ("prompt_logprobs", params.prompt_logprobs),
    ):
        holds = count is None or 0 <= count <= LOGPROBS_MAX
        _require(field, count, holds, f"from 0 to {LOGPROBS_MAX}")


def _check_token_ids(params: SamplingParams, vocab_size: int) -> None:
    biased, words = sorted(params.logit_bias), params.bad_words
    _require_few("logit_bias", len(biased), BIASED_TOKENS_MAX)
    _require_few("bad_words", len(words), BAD_WORDS_MAX)
    _require("bad_words", "an empty one", all(words), "sequences of at least one token")
    for field, token_ids in (
        ("stop_token_ids", sorted(params.stop_token_ids)),
        ("logit_bias", biased),
        ("bad_words", sorted(token for word in words for token in word)),
    ):
        ends = token_ids[:1] + token_ids[-1:]
        for token in ends:
            _require(field, token, 0 <= token < vocab_size, f"of tokens from 0 to {vocab_size - 1}")


def _require_few(field: str, count: int, most: int) -> None:
    _require(field, f"{count}", count <= most, f"at most {most}")


def _require(field: str, value: object, holds: bool, accepted: str) -> None:
    if not holds:
        raise InvalidArgumentError(f"{field} must be {accepted}, got {value}")

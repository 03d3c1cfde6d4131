"""Log probabilities as OpenAI clients read them."""

from __future__ import annotations

import codecs
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from model_runner.token_text import TokenText, TokenTexts
from model_runner.wire.v1 import generation_pb2 as generation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Json = dict[str, Any]

_NO_CHANCE = -9999.0
"""JSON has no infinity; this is what OpenAI writes instead."""


@dataclass(frozen=True, slots=True)
class Alternative:
    """A token that might stand in a place, and how probable it is there."""

    token: TokenText
    logprob: float | None
    """None for the first token of a prompt."""


@dataclass(frozen=True, slots=True)
class ToldToken:
    """A token of an answer (or of its prompt, with `echo`)."""

    own: Alternative
    best: tuple[Alternative, ...]
    offset: int
    """Characters of text before it."""


class LogprobTeller:
    """Reads the tokens of one answer in their order. One thread."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._texts = TokenTexts(tokenizer)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0

    def tell(self, token_id: int, told: generation.TokenLogprobs | None) -> ToldToken:
        """`told` is None for the first token of a prompt."""
        token, offset = self._texts.of(token_id), self._offset
        if not self._texts.is_special(token_id):
            self._offset += len(self._decoder.decode(token.data))
        if told is None:
            return ToldToken(Alternative(token, None), (), offset)
        best = tuple(
            Alternative(self._texts.of(other), _finite(value))
            for other, value in zip(told.top_token_ids, told.top_logprobs, strict=True)
        )
        return ToldToken(Alternative(token, _finite(told.logprob)), best, offset)


def chat_logprobs(tokens: Sequence[ToldToken] | None) -> Json | None:
    if tokens is None:
        return None
    content = [
        _chat_token(token.own) | {"top_logprobs": [_chat_token(other) for other in token.best]}
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(tokens: Sequence[ToldToken] | None) -> Json | None:
    """The chosen token is among the best ones, whether or not it is one of them."""
    if tokens is None:
        return None
    return {
        "tokens": [token.own.token.text for token in tokens],
        "token_logprobs": [token.own.logprob for token in tokens],
        "top_logprobs": [_best(token) for token in tokens],
        "text_offset": [token.offset for token in tokens],
    }


def _best(token: ToldToken) -> dict[str, float | None] | None:
    if token.own.logprob is None:
        return None
    return {other.token.text: other.logprob for other in (*token.best, token.own)}


def _chat_token(told: Alternative) -> Json:
    token = told.token
    return {"token": token.text, "logprob": told.logprob, "bytes": list(token.data)}


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else _NO_CHANCE

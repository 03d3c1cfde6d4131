"""One answer: token ids in; text, calls of tools and log probabilities out."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cluster.gateway.logprobs import LogprobTeller, ToldToken
from cluster.gateway.tool_calls import CLOSE, OPEN, ToolCall, ToolCallReader
from model_runner.text import TextStream
from model_runner.wire.v1 import generation_pb2 as generation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class AnswerShape:
    """How tokens become answers. The same for all prompts of a request."""

    choices: int = 1
    """Answers to each prompt."""
    stop: Sequence[str] = ()
    min_tokens: int = 0
    """No stop string is looked for in the first ones."""
    logprobs: bool = False
    echo: bool = False
    """An answer begins with its prompt."""
    tool_calls_max: int = 0
    """Calls that are read from the text; 0: all of it is text. Further ones are left out."""


@dataclass(frozen=True, slots=True)
class Part:
    """What some more tokens brought."""

    text: str
    logprobs: tuple[ToldToken, ...] | None = None
    """Of these tokens, if asked for. Their text may be held back, and come with a later part."""
    tool_calls: tuple[ToolCall, ...] = ()


class AnswerReader:
    """Takes the tokens of one answer in their order. One thread."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, shape: AnswerShape) -> None:
        self._tokenizer = tokenizer
        self._calls_max = shape.tool_calls_max
        marks = _special_marks(tokenizer) if shape.tool_calls_max else frozenset()
        self._hidden = frozenset(tokenizer.all_special_ids) - marks if marks else frozenset()
        self._text = TextStream(
            tokenizer, shape.stop, min_tokens=shape.min_tokens, skip_special_tokens=not marks
        )
        self._calls = ToolCallReader(_draw_call_id) if shape.tool_calls_max else None
        self._teller = LogprobTeller(tokenizer) if shape.logprobs else None
        self.num_tokens = 0
        """Of the answer, up to its end: those behind a stop string are no part of it."""

    @property
    def stopped(self) -> bool:
        """A stop string has come."""
        return self._text.stopped

    @property
    def calls_tools(self) -> bool:
        return self._calls is not None and self._calls.num_calls > 0

    def echo(self, prompt: Sequence[int], told: Sequence[generation.TokenLogprobs]) -> Part:
        """The prompt. `told`: of all its tokens but the first, if asked for."""
        text = TextStream(self._tokenizer)
        whole = text.push(prompt) + text.flush()
        if self._teller is None:
            return Part(whole)
        tokens = zip(prompt, [None, *told], strict=True)
        return Part(whole, tuple(self._teller.tell(*one) for one in tokens))

    def take(self, token_ids: Sequence[int], told: Sequence[generation.TokenLogprobs]) -> Part:
        """`told`: of all tokens of the answer so far, if asked for."""
        texts, tokens = [], []
        for token_id in token_ids:
            if self.stopped:
                break
            texts.append(self._text.push([token_id] if token_id not in self._hidden else []))
            if self._teller is not None:
                tokens.append(self._teller.tell(token_id, told[self.num_tokens]))
            self.num_tokens += 1
        return self._part("".join(texts), None if self._teller is None else tuple(tokens))

    def end(self) -> Part:
        """The rest."""
        part = self._part(self._text.flush(), None if self._teller is None else ())
        if self._calls is None:
            return part
        return Part(part.text + self._calls.flush(), part.logprobs, part.tool_calls)

    def _part(self, text: str, tokens: tuple[ToldToken, ...] | None) -> Part:
        if self._calls is None:
            return Part(text, tokens)
        pieces = self._calls.push(text)
        calls = [piece for piece in pieces if isinstance(piece, ToolCall)]
        content = "".join(piece for piece in pieces if isinstance(piece, str))
        return Part(content, tokens, tuple(c for c in calls if c.index < self._calls_max))


def _special_marks(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Some vocabularies have the marks of a call as special tokens, which are no part of a text."""
    special = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
    return frozenset(token_id for token, token_id in special if token in (OPEN, CLOSE))


def _draw_call_id() -> str:
    return f"call_{secrets.token_hex(12)}"

"""Builders of the JSON that OpenAI clients parse. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cluster.gateway.logprobs import ToldToken, completion_logprobs
from cluster.gateway.tool_calls import ToolCall
from cluster.wire.v1 import conductor_pb2 as conductor
from model_runner.wire.v1 import generation_pb2 as generation

Json = dict[str, Any]

TIERS = ("device", "host", "disk", "remote")


@dataclass(frozen=True, slots=True)
class Envelope:
    """What all parts of one response share."""

    id: str
    created_s: int
    model: str


@dataclass(frozen=True, slots=True)
class Choice:
    """One finished answer."""

    text: str
    finish_reason: str
    logprobs: tuple[ToldToken, ...] | None = None
    """None if not asked for."""
    tool_calls: tuple[ToolCall, ...] = ()


Logprobs = Sequence[ToldToken] | None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one prompt and its answers. Sums over the prompts of a request."""

    prompt_tokens: int
    completion_tokens: int
    hit_tokens: generation.HitTokens


def usage_json(usages: Sequence[Usage]) -> Json:
    prompt_tokens = sum(usage.prompt_tokens for usage in usages)
    completion_tokens = sum(usage.completion_tokens for usage in usages)
    hits = {tier: sum(getattr(usage.hit_tokens, tier) for usage in usages) for tier in TIERS}
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": sum(hits.values()), "hit_tokens": hits},
    }


class Format(Protocol):
    """The two shapes of answers, /v1/completions and /v1/chat/completions."""

    id_prefix: str

    def whole(self, envelope: Envelope, choices: Sequence[Choice], usage: Json) -> Json: ...

    def first(self, envelope: Envelope, index: int) -> Json | None:
        """Sent before the first text of choice `index`, if the shape has such a thing."""

    def text(self, envelope: Envelope, index: int, text: str, logprobs: Logprobs) -> Json: ...

    def tool_call(self, envelope: Envelope, index: int, call: ToolCall) -> Json: ...

    def finish(self, envelope: Envelope, index: int, finish_reason: str) -> Json: ...

    def usage(self, envelope: Envelope, usage: Json) -> Json: ...


class CompletionFormat:
    """Of /v1/completions."""

    id_prefix = "cmpl-"

    def whole(self, envelope: Envelope, choices: Sequence[Choice], usage: Json) -> Json:
        return self._body(envelope) | {
            "choices": [
                self._choice(index, choice.text, choice.finish_reason, choice.logprobs)
                for index, choice in enumerate(choices)
            ],
            "usage": usage,
        }

    def first(self, envelope: Envelope, index: int) -> None:
        return None

    def text(self, envelope: Envelope, index: int, text: str, logprobs: Logprobs) -> Json:
        return self._body(envelope) | {"choices": [self._choice(index, text, None, logprobs)]}

    def tool_call(self, envelope: Envelope, index: int, call: ToolCall) -> Json:
        raise AssertionError("completions call no tools")

    def finish(self, envelope: Envelope, index: int, finish_reason: str) -> Json:
        return self._body(envelope) | {"choices": [self._choice(index, "", finish_reason, None)]}

    def usage(self, envelope: Envelope, usage: Json) -> Json:
        return self._body(envelope) | {"choices": [], "usage": usage}

    def _body(self, envelope: Envelope) -> Json:
        return head(envelope, "text_completion")

    def _choice(self, index: int, text: str, finish_reason: str | None, logprobs: Logprobs) -> Json:
        return {
            "index": index,
            "text": text,
            "logprobs": completion_logprobs(logprobs),
            "finish_reason": finish_reason,
        }


def model_json(model: conductor.ModelInfo) -> Json:
    return {
        "id": model.name,
        "object": "model",
        "created": 0,
        "owned_by": "kvstore",
        "max_model_len": model.max_context_tokens,
    }


def head(envelope: Envelope, kind: str) -> Json:
    """What every object of a response begins with."""
    return {
        "id": envelope.id,
        "object": kind,
        "created": envelope.created_s,
        "model": envelope.model,
    }

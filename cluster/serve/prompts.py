"""The prompt in the arguments of a Serve request, as the names of its blocks. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np

from kvstore.core.errors import InvalidArgumentError
from kvstore.core.hashing import block_hashes
from kvstore.core.ids import BlockHash

BYTES_PER_TOKEN = 4
"""Of text whose tokens are not known: a usual mean."""

_TOKEN_FIELDS = ("request_token_ids", "prompt_token_ids", "token_ids", "input_ids")
"""The first is what Serve's own LLM ingress passes to its router."""


@dataclass(frozen=True, slots=True)
class ServePrompt:
    tokens: int
    """Estimated where only the text is known; at least 1."""
    hashes: Sequence[BlockHash]
    """Of its full blocks. The router's own: no engine has to know them."""
    answer_tokens_max: int


def prompt_of(
    args: Sequence[Any], kwargs: Mapping[str, Any], block_size_tokens: int, model_id: str = ""
) -> ServePrompt | None:
    """Token ids if any argument has them, else text; None where there is neither.

    Looks at the arguments themselves, and at the fields that OpenAI requests have. `model_id` (a
    LoRA adapter, say) keeps apart what different models compute.
    """
    values = [*args, *kwargs.values()]
    answer_tokens_max = next((n for n in map(_answer_tokens_max, values) if n), 0)
    for value in (kwargs, *values):
        token_ids = _token_ids(value)
        if token_ids:
            hashes = _hashes("tokens", model_id, token_ids, block_size_tokens)
            if hashes is not None:
                return ServePrompt(len(token_ids), hashes, answer_tokens_max)
    text = next(filter(None, map(_text, values)), None)
    if text is None:
        return None
    content = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)
    hashes = _hashes("text", model_id, content, block_size_tokens * BYTES_PER_TOKEN)
    return ServePrompt(-(-len(content) // BYTES_PER_TOKEN), hashes or (), answer_tokens_max)


def _hashes(
    kind: str, model_id: str, tokens: Any, block_size_tokens: int
) -> Sequence[BlockHash] | None:
    """None: these are no tokens."""
    root = sha256(json.dumps(["kvstore.serve.v1", kind, model_id]).encode()).digest()
    try:
        return block_hashes(root, tokens, block_size_tokens)
    except InvalidArgumentError:
        return None


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)


def _token_ids(value: Any) -> Sequence[int] | None:
    candidates = [value, _field(value, "prompt")]
    candidates += [_field(value, name) for name in _TOKEN_FIELDS]
    for candidate in candidates:
        if isinstance(candidate, list) and candidate and type(candidate[0]) is int:
            return candidate
    return None


def _text(value: Any) -> str | None:
    if isinstance(value, str):
        return value
    prompt, messages = _field(value, "prompt"), _field(value, "messages")
    if isinstance(prompt, list) and prompt:
        prompt = prompt[0]
    if isinstance(prompt, str):
        return prompt
    if isinstance(messages, list) and messages:
        # One after another, so that the text of a conversation is the beginning of its next turn's.
        return "".join(json.dumps(message, default=_plain) for message in messages)
    return None


def _plain(value: Any) -> Any:
    """What JSON does not know, of a message."""
    return value.model_dump() if hasattr(value, "model_dump") else str(value)


def _answer_tokens_max(value: Any) -> int:
    for name in ("max_completion_tokens", "max_tokens"):
        limit = _field(value, name)
        if type(limit) is int and limit > 0:
            return limit
    return 0

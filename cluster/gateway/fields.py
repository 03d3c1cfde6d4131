"""Checks of single fields, for `schemas`: each takes what JSON brought, and raises ValueError that
says what it must be."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeGuard

from pydantic import BeforeValidator

MAX_STOP_STRINGS = 4
MAX_STOP_TOKENS = 128
MAX_BAD_WORDS = 256
MAX_BIASED_TOKENS = 1024
_DEPTH_MAX = 64

Prompt = str | list[int]
"""Text, or the token ids of one prompt."""


def prompts(value: object) -> list[Prompt]:
    if value in ("", []) or (isinstance(value, list) and value[0] == []):
        raise ValueError("must not be empty")
    if _is_text(value) or _is_token_ids(value):
        return [value]
    if isinstance(value, list) and (
        all(_is_text(item) for item in value) or all(_is_token_ids(item) for item in value)
    ):
        return value
    raise ValueError(
        "must be a string, a list of strings, a list of token ids (integers in [0, 2^32)) or a "
        "list of such lists"
    )


def _is_token_ids(value: object) -> TypeGuard[list[int]]:
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(type(t) is int and 0 <= t < 2**32 for t in value)
    )


def _is_text(value: object) -> TypeGuard[str]:
    """JSON can spell halves of characters (unpaired surrogates); those are no text."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def stop_strings(value: object) -> list[str]:
    strings = [] if value is None else [value] if isinstance(value, str) else value
    if (
        not isinstance(strings, list)
        or len(strings) > MAX_STOP_STRINGS
        or not all(_is_text(s) and s for s in strings)
    ):
        raise ValueError(f"must be a non-empty string or a list of up to {MAX_STOP_STRINGS}")
    return strings


def bias(value: object) -> dict[int, float]:
    """JSON has only strings for keys: these are token ids."""
    if value is None:
        return {}
    if (
        not isinstance(value, dict)
        or len(value) > MAX_BIASED_TOKENS
        or not all(_is_bias(token, bias) for token, bias in value.items())
    ):
        raise ValueError(
            f"must map up to {MAX_BIASED_TOKENS} token ids to numbers from -100 to 100, "
            'as in {"42": -100}'
        )
    return {int(token): float(bias) for token, bias in value.items()}


def _is_bias(token: object, bias: object) -> bool:
    is_id = isinstance(token, str) and token.isascii() and token.isdigit() and len(token) < 11
    return is_id and type(bias) in (int, float) and -100 <= bias <= 100  # type: ignore[operator]


def stop_tokens(value: object) -> list[int]:
    if value is None or value == []:
        return []
    if not _is_token_ids(value) or len(value) > MAX_STOP_TOKENS:
        raise ValueError(f"must be a list of up to {MAX_STOP_TOKENS} token ids")
    return value


def words(value: object) -> list[str]:
    words = [] if value is None else value
    if (
        not isinstance(words, list)
        or len(words) > MAX_BAD_WORDS
        or not all(_is_text(word) and word for word in words)
    ):
        raise ValueError(f"must be a list of up to {MAX_BAD_WORDS} non-empty strings")
    return words


def only_text(value: object) -> None:
    if value is not None and value != {"type": "text"}:
        raise ValueError('only {"type": "text"} is supported; describe the format in the prompt')


def token_ids(value: object) -> list[int]:
    if value == []:
        return []
    if not _is_token_ids(value):
        raise ValueError("must be a list of token ids (integers in [0, 2^32))")
    return value


def refused(instead: str) -> Callable[[object], None]:
    def refuse(value: object) -> None:
        if value not in (None, "", False):
            raise ValueError(f"is not supported; {instead}")

    return refuse


def only_text_modality(value: object) -> None:
    if value is not None and value != ["text"]:
        raise ValueError('only ["text"] is supported')


def the_function(value: object) -> str:
    if value != "function":
        raise ValueError("must be 'function': there are no other tools")
    return "function"


def any_or_no_tool(value: object) -> str:
    """A model can be offered tools; nothing here can make it call one."""
    if value is None:
        return "auto"
    if value not in ("auto", "none"):
        raise ValueError("only 'auto' and 'none' are supported; ask for the call in the messages")
    return str(value)


def json_object(value: object) -> dict[str, Any] | None:
    if value is not None and not _is_json_object(value):
        raise ValueError("must be a JSON object of at most 64 levels")
    return value


def json_object_text(value: object) -> dict[str, Any]:
    try:
        read = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        read = None
    if not _is_json_object(read):
        raise ValueError("must be the text of a JSON object")
    return read


def _is_json_object(value: object) -> TypeGuard[dict[str, Any]]:
    """Whose text is text (see `_is_text`), and which is not nested without end."""
    return isinstance(value, dict) and _depth(value) <= _DEPTH_MAX and _is_text(_json(value))


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _depth(value: object) -> int:
    """Level by level, without recursion."""
    depth, level = 0, [value]
    while level and depth <= _DEPTH_MAX:
        depth += 1
        level = [child for one in level for child in _children(one)]
    return depth


def _children(value: object) -> list[object]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def text(value: object) -> str | None:
    """Content of a message: a string, or parts of type text, which are joined by line breaks."""
    if value is None or _is_text(value):
        return value
    if not isinstance(value, list):
        raise ValueError("must be a string or a list of content parts")
    return "\n".join(_text_of_part(part) for part in value)


def _text_of_part(part: object) -> str:
    match part:
        case {"type": "text", "text": str(text)} if _is_text(text):
            return text
        case {"type": str(kind)} if kind != "text":
            raise ValueError(f"content parts of type {kind!r} are not supported, only 'text' is")
    raise ValueError('a content part must be {"type": "text", "text": "..."}')


def or_default(default: object) -> BeforeValidator:
    return BeforeValidator(lambda value: default if value is None else value)

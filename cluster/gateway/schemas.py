"""What clients may send. Types are strict, as OpenAI's are; unknown fields are ignored; null means
"not given"."""

from __future__ import annotations

from typing import Annotated, TypeGuard

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator

MAX_STOP_STRINGS = 4

Prompt = str | list[int]
"""Text, or the token ids of one prompt."""


def _prompts(value: object) -> list[Prompt]:
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


def _stop_strings(value: object) -> list[str]:
    strings = [] if value is None else [value] if isinstance(value, str) else value
    if (
        not isinstance(strings, list)
        or len(strings) > MAX_STOP_STRINGS
        or not all(_is_text(s) and s for s in strings)
    ):
        raise ValueError(f"must be a non-empty string or a list of up to {MAX_STOP_STRINGS}")
    return strings


def _one(value: object) -> int:
    if value is None or (type(value) is int and value == 1):
        return 1
    raise ValueError("only n=1 is supported; send the request several times instead")


def _text(value: object) -> str | None:
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


def _or(default: object) -> BeforeValidator:
    return BeforeValidator(lambda value: default if value is None else value)


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True)

    include_usage: Annotated[bool, _or(False)] = False


class GenerationFields(BaseModel):
    """What both routes take. `top_k`, `ignore_eos` and `cache` are extensions to OpenAI's API."""

    model_config = ConfigDict(strict=True)

    model: str
    stream: Annotated[bool, _or(False)] = False
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False), _or(1.0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False), _or(1.0)] = 1.0
    top_k: Annotated[int, Field(ge=0, lt=2**32), _or(0)] = 0
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    stop: Annotated[list[str], PlainValidator(_stop_strings)] = Field(default_factory=list)
    n: Annotated[int, PlainValidator(_one)] = 1
    max_tokens: Annotated[int, Field(ge=1, lt=2**32)] | None = None
    ignore_eos: Annotated[bool, _or(False)] = False
    cache: Annotated[bool, _or(True)] = True
    user: str | None = None

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionBody(GenerationFields):
    """POST /v1/completions."""

    prompt: Annotated[list[Prompt], PlainValidator(_prompts)]


class ChatMessage(BaseModel):
    model_config = ConfigDict(strict=True)

    role: Annotated[str, Field(min_length=1)]
    content: Annotated[str | None, PlainValidator(_text)] = None


class ChatBody(GenerationFields):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**32)] | None = None

    @property
    def answer_tokens_max(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

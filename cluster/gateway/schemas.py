"""What clients may send. Types are strict, as OpenAI's are; unknown fields are ignored; null means
"not given"."""

from __future__ import annotations

from typing import Annotated, TypeGuard

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationInfo,
    field_validator,
)

MAX_STOP_STRINGS = 4
MAX_CHOICES = 128
MAX_LOGPROBS = 20
MAX_STOP_TOKENS = 128
MAX_BAD_WORDS = 256
MAX_BIASED_TOKENS = 1024

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


def _bias(value: object) -> dict[int, float]:
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


def _stop_tokens(value: object) -> list[int]:
    if value is None or value == []:
        return []
    if not _is_token_ids(value) or len(value) > MAX_STOP_TOKENS:
        raise ValueError(f"must be a list of up to {MAX_STOP_TOKENS} token ids")
    return value


def _words(value: object) -> list[str]:
    words = [] if value is None else value
    if (
        not isinstance(words, list)
        or len(words) > MAX_BAD_WORDS
        or not all(_is_text(word) and word for word in words)
    ):
        raise ValueError(f"must be a list of up to {MAX_BAD_WORDS} non-empty strings")
    return words


def _only_text(value: object) -> None:
    if value is not None and value != {"type": "text"}:
        raise ValueError('only {"type": "text"} is supported; describe the format in the prompt')


def _nothing(value: object) -> None:
    if value not in (None, ""):
        raise ValueError("is not supported; put the whole text into the prompt")


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
    """What both routes take. Extensions to OpenAI's API: `top_k`, `min_p`, `repetition_penalty`,
    `bad_words`, `min_tokens`, `ignore_eos`, `stop_token_ids` and `cache`."""

    model_config = ConfigDict(strict=True)

    model: str
    stream: Annotated[bool, _or(False)] = False
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False), _or(1.0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False), _or(1.0)] = 1.0
    top_k: Annotated[int, Field(ge=0, lt=2**32), _or(0)] = 0
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    stop: Annotated[list[str], PlainValidator(_stop_strings)] = Field(default_factory=list)
    stop_token_ids: Annotated[list[int], PlainValidator(_stop_tokens)] = Field(default_factory=list)
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES), _or(1)] = 1
    max_tokens: Annotated[int, Field(ge=1, lt=2**32)] | None = None
    min_tokens: Annotated[int, Field(ge=0, lt=2**32), _or(0)] = 0
    ignore_eos: Annotated[bool, _or(False)] = False
    min_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), _or(0.0)] = 0.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False), _or(0.0)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False), _or(0.0)] = 0.0
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100, allow_inf_nan=False), _or(1.0)] = (
        1.0
    )
    logit_bias: Annotated[dict[int, float], PlainValidator(_bias)] = Field(default_factory=dict)
    bad_words: Annotated[list[str], PlainValidator(_words)] = Field(default_factory=list)
    response_format: Annotated[None, PlainValidator(_only_text)] = None
    cache: Annotated[bool, _or(True)] = True
    user: str | None = None

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def logprobs_asked(self) -> int | None:
        """None without log probabilities; else for how many of the most probable tokens."""
        raise NotImplementedError

    @property
    def echoes(self) -> bool:
        """The answer begins with the prompt."""
        return False


class CompletionBody(GenerationFields):
    """POST /v1/completions."""

    prompt: Annotated[list[Prompt], PlainValidator(_prompts)]
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    echo: Annotated[bool, _or(False)] = False
    best_of: int | None = None
    suffix: Annotated[None, PlainValidator(_nothing)] = None

    @field_validator("best_of")
    @classmethod
    def _no_best(cls, best_of: int | None, info: ValidationInfo) -> int | None:
        if best_of is not None and best_of != info.data.get("n"):
            raise ValueError("only best_of equal to n is supported; choose among n with logprobs")
        return best_of

    @property
    def logprobs_asked(self) -> int | None:
        return self.logprobs

    @property
    def echoes(self) -> bool:
        return self.echo


class ChatMessage(BaseModel):
    model_config = ConfigDict(strict=True)

    role: Annotated[str, Field(min_length=1)]
    content: Annotated[str | None, PlainValidator(_text)] = None


class ChatBody(GenerationFields):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**32)] | None = None
    logprobs: Annotated[bool, _or(False)] = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None

    @field_validator("top_logprobs")
    @classmethod
    def _with_logprobs(cls, top_logprobs: int | None, info: ValidationInfo) -> int | None:
        if top_logprobs is not None and not info.data.get("logprobs"):
            raise ValueError("needs logprobs: true")
        return top_logprobs

    @property
    def logprobs_asked(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def answer_tokens_max(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

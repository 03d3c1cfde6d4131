"""What clients may send. Types are strict, as OpenAI's are; unknown fields are ignored; null means
"not given"."""

from __future__ import annotations

from typing import Annotated

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationInfo,
    field_validator,
)

from cluster.gateway.fields import (
    Prompt,
    bias,
    nothing,
    only_text,
    or_default,
    prompts,
    stop_strings,
    stop_tokens,
    text,
    words,
)

MAX_CHOICES = 128
MAX_LOGPROBS = 20

Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False), or_default(0.0)]


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True)

    include_usage: Annotated[bool, or_default(False)] = False


class GenerationFields(BaseModel):
    """What both routes take. Extensions to OpenAI's API: `top_k`, `min_p`, `repetition_penalty`,
    `bad_words`, `min_tokens`, `ignore_eos`, `stop_token_ids` and `cache`."""

    model_config = ConfigDict(strict=True)

    model: str
    stream: Annotated[bool, or_default(False)] = False
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False), or_default(1.0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False), or_default(1.0)] = 1.0
    top_k: Annotated[int, Field(ge=0, lt=2**32), or_default(0)] = 0
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    stop: Annotated[list[str], PlainValidator(stop_strings)] = Field(default_factory=list)
    stop_token_ids: Annotated[list[int], PlainValidator(stop_tokens)] = Field(default_factory=list)
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES), or_default(1)] = 1
    max_tokens: Annotated[int, Field(ge=1, lt=2**32)] | None = None
    min_tokens: Annotated[int, Field(ge=0, lt=2**32), or_default(0)] = 0
    ignore_eos: Annotated[bool, or_default(False)] = False
    min_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), or_default(0.0)] = 0.0
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    repetition_penalty: Annotated[
        float, Field(ge=0.01, le=100, allow_inf_nan=False), or_default(1.0)
    ] = 1.0
    logit_bias: Annotated[dict[int, float], PlainValidator(bias)] = Field(default_factory=dict)
    bad_words: Annotated[list[str], PlainValidator(words)] = Field(default_factory=list)
    response_format: Annotated[None, PlainValidator(only_text)] = None
    cache: Annotated[bool, or_default(True)] = True
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

    prompt: Annotated[list[Prompt], PlainValidator(prompts)]
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    echo: Annotated[bool, or_default(False)] = False
    best_of: int | None = None
    suffix: Annotated[None, PlainValidator(nothing)] = None

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
    content: Annotated[str | None, PlainValidator(text)] = None


class ChatBody(GenerationFields):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**32)] | None = None
    logprobs: Annotated[bool, or_default(False)] = False
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

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
    only_text,
    only_text_modality,
    or_default,
    prompts,
    refused,
    stop_strings,
    stop_tokens,
    words,
)
from model_runner.generation import MAX_PRIORITY

MAX_CHOICES = 128
MAX_LOGPROBS = 20

Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False), or_default(0.0)]


TargetMs = Annotated[float, Field(gt=0, le=3_600_000, allow_inf_nan=False)]


FormatInPrompt = Annotated[None, PlainValidator(refused("describe the format in the prompt"))]
"""Of fields that are known from elsewhere and would change the answer: refused, not ignored."""


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True)

    include_usage: Annotated[bool, or_default(False)] = False


class GenerationFields(BaseModel):
    """What both routes take. Extensions to OpenAI's API: `top_k`, `min_p`, `repetition_penalty`,
    `bad_words`, `min_tokens`, `ignore_eos`, `stop_token_ids`, `priority` (as vLLM has it: the
    smaller one goes first), `cache`, `slo_ttft_ms` and `slo_itl_ms`."""

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
    priority: Annotated[int, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY), or_default(0)] = 0
    cache: Annotated[bool, or_default(True)] = True
    user: str | None = None
    prompt_cache_key: str | None = None
    slo_ttft_ms: TargetMs | None = None
    slo_itl_ms: TargetMs | None = None
    modalities: Annotated[None, PlainValidator(only_text_modality)] = None
    structured_outputs: FormatInPrompt = None
    guided_json: FormatInPrompt = None
    guided_regex: FormatInPrompt = None
    guided_choice: FormatInPrompt = None
    guided_grammar: FormatInPrompt = None
    use_beam_search: Annotated[None, PlainValidator(refused("use n"))] = None

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
    suffix: Annotated[None, PlainValidator(refused("put the whole text into the prompt"))] = None

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

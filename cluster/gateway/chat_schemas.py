"""What clients may send for a chat: messages, tools, and settings of the chat template."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationInfo, field_validator

from cluster.gateway.fields import (
    any_or_no_tool,
    json_object,
    json_object_text,
    or_default,
    refused,
    text,
    the_function,
)
from cluster.gateway.schemas import MAX_LOGPROBS, GenerationFields

MAX_MESSAGES = 4096
MAX_TOOLS = 128

Json = dict[str, Any]
Text = Annotated[str | None, PlainValidator(text)]
Kind = Annotated[str, PlainValidator(the_function)]


class CalledFunction(BaseModel):
    model_config = ConfigDict(strict=True)

    name: Annotated[str, Field(min_length=1)]
    arguments: Annotated[Json, PlainValidator(json_object_text)]
    """JSON text as clients send it; templates want the object that it spells."""


class CalledTool(BaseModel):
    """A call that the assistant asked for in an earlier turn."""

    model_config = ConfigDict(strict=True)

    id: str | None = None
    type: Kind = "function"
    function: CalledFunction


class ChatMessage(BaseModel):
    model_config = ConfigDict(strict=True)

    role: Annotated[str, Field(min_length=1)]
    content: Text = None
    name: str | None = None
    tool_calls: Annotated[list[CalledTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_call_id: str | None = None


class ToolFunction(BaseModel):
    model_config = ConfigDict(strict=True)

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: Annotated[Json | None, PlainValidator(json_object)] = None


class Tool(BaseModel):
    model_config = ConfigDict(strict=True)

    type: Kind
    function: ToolFunction


class ChatPrompt(BaseModel):
    """All that the chat template sees."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS), or_default([])] = Field(
        default_factory=list
    )
    tool_choice: Annotated[str, PlainValidator(any_or_no_tool)] = "auto"
    chat_template_kwargs: Annotated[Json | None, PlainValidator(json_object)] = None

    @property
    def offered_tools(self) -> list[Tool]:
        """Those that the model gets to see."""
        return [] if self.tool_choice == "none" else self.tools


class ChatBody(ChatPrompt, GenerationFields):
    """POST /v1/chat/completions."""

    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**32)] | None = None
    logprobs: Annotated[bool, or_default(False)] = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    parallel_tool_calls: Annotated[bool, or_default(True)] = True
    functions: Annotated[None, PlainValidator(refused("use tools"))] = None
    function_call: Annotated[None, PlainValidator(refused("use tool_choice"))] = None
    audio: Annotated[None, PlainValidator(refused("only text is generated"))] = None

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

"""From a conversation to token ids, through the chat template of the model."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from cluster.gateway.chat_schemas import ChatPrompt
from cluster.gateway.errors import BadFieldError
from cluster.gateway.tool_calls import OPEN

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_chat(
    tokenizer: PreTrainedTokenizerBase, chat: ChatPrompt, *, add_generation_prompt: bool = True
) -> list[int]:
    """Token ids of a conversation, up to where the assistant's answer begins.

    Raises BadFieldError if the model has no chat template, if its template refuses the messages, or
    takes no tools.
    """
    tools: list[Any] = [tool.model_dump(exclude_none=True) for tool in chat.offered_tools]
    if tools and "tools" not in _template(tokenizer, with_tools=True):
        raise BadFieldError("tools", "the chat template of this model takes none; leave them out")
    if tokenizer.chat_template is None:
        raise BadFieldError("messages", "the model has no chat template; use /v1/completions")
    settings = _settings(tokenizer, chat.chat_template_kwargs or {})
    try:
        token_ids = tokenizer.apply_chat_template(
            [message.model_dump() for message in chat.messages],
            tools=tools or None,
            add_generation_prompt=add_generation_prompt,
            return_dict=False,
            **settings,
        )
    except Exception as error:
        # A template is a program that runs on what the client sent: it may raise anything.
        raise BadFieldError("messages", f"the chat template refused them: {error}") from error
    return cast("list[int]", token_ids)


def calls_can_be_read(tokenizer: PreTrainedTokenizerBase, chat: ChatPrompt) -> bool:
    """Whether the template teaches the model to call tools in the one way that is understood here,
    as Hermes and Qwen do. Calls of other models stay text."""
    return bool(chat.offered_tools) and OPEN in _template(tokenizer, with_tools=True)


def _template(tokenizer: PreTrainedTokenizerBase, *, with_tools: bool) -> str:
    if tokenizer.chat_template is None:
        return ""
    try:
        return str(tokenizer.get_chat_template(tools=[] if with_tools else None))
    except ValueError as error:  # several templates, none of them the default
        raise BadFieldError(
            "messages", f"the model has no chat template to use: {error}"
        ) from error


def _settings(tokenizer: PreTrainedTokenizerBase, given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Variables of the template. What else the library would take them for is the gateway's."""
    taken = inspect.signature(tokenizer.apply_chat_template).parameters.keys()
    if reserved := sorted((taken | {"messages", "conversations"}) & given.keys()):
        raise BadFieldError("chat_template_kwargs", f"{reserved[0]!r} cannot be set")
    return given

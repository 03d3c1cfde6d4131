"""Builders of the JSON of chats. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.gateway.logprobs import chat_logprobs
from cluster.gateway.openai_format import Choice, Envelope, Json, Logprobs, head
from cluster.gateway.tool_calls import ToolCall


class ChatFormat:
    """Of /v1/chat/completions."""

    id_prefix = "chatcmpl-"

    def whole(self, envelope: Envelope, choices: Sequence[Choice], usage: Json) -> Json:
        return head(envelope, "chat.completion") | {
            "choices": [
                {
                    "index": index,
                    "message": _message(choice),
                    "logprobs": chat_logprobs(choice.logprobs),
                    "finish_reason": choice.finish_reason,
                }
                for index, choice in enumerate(choices)
            ],
            "usage": usage,
        }

    def first(self, envelope: Envelope, index: int) -> Json:
        return self._chunk(envelope, index, {"role": "assistant", "content": ""}, None)

    def text(self, envelope: Envelope, index: int, text: str, logprobs: Logprobs) -> Json:
        return self._chunk(envelope, index, {"content": text}, None, logprobs)

    def tool_call(self, envelope: Envelope, index: int, call: ToolCall) -> Json:
        return self._chunk(
            envelope, index, {"tool_calls": [{"index": call.index} | _call(call)]}, None
        )

    def finish(self, envelope: Envelope, index: int, finish_reason: str) -> Json:
        return self._chunk(envelope, index, {}, finish_reason)

    def usage(self, envelope: Envelope, usage: Json) -> Json:
        return head(envelope, "chat.completion.chunk") | {"choices": [], "usage": usage}

    def _chunk(
        self,
        envelope: Envelope,
        index: int,
        delta: Json,
        finish_reason: str | None,
        logprobs: Logprobs = None,
    ) -> Json:
        choice = {
            "index": index,
            "delta": delta,
            "finish_reason": finish_reason,
            "logprobs": chat_logprobs(logprobs),
        }
        return head(envelope, "chat.completion.chunk") | {"choices": [choice]}


def _message(choice: Choice) -> Json:
    message: Json = {"role": "assistant", "content": choice.text, "refusal": None}
    if choice.tool_calls:
        message["content"] = choice.text or None
        message["tool_calls"] = [_call(call) for call in choice.tool_calls]
    return message


def _call(call: ToolCall) -> Json:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}

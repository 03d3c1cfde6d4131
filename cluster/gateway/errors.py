"""What an error is to an HTTP client: status, and the body that OpenAI clients parse."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kvstore.core.errors import (
    ConfigurationError,
    DeadlineExceededError,
    InvalidArgumentError,
    KVStoreError,
    NotFoundError,
    OverloadedError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
)

RETRY_AFTER_S = 1.0
"""Told to clients that are refused for load where nobody knows better. Queues here drain within
seconds."""


class ModelNotFoundError(InvalidArgumentError):
    """No worker serves a model of this name; the message lists those that are served."""


class UnknownRequestError(NotFoundError):
    """The request is not, or not any more, among those that are remembered. Ask sooner."""


class ContextLengthError(InvalidArgumentError):
    """Prompt and answer do not fit into the model's context. Shorten the prompt or `max_tokens`."""


class BadFieldError(InvalidArgumentError):
    """A field of the request cannot be used; `param` names it."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(f"{param}: {message}")
        self.param = param


class NotServingError(UnavailableError):
    """The cluster cannot serve now. The message says what is missing."""


class ApiKeyError(UnauthenticatedError):
    """The client's API key is missing, unknown or expired. Get a good one."""


class NotAllowedError(PermissionDeniedError):
    """The client's API key is good, but not for this. Use one of the right tenant or role."""


class RateLimitError(OverloadedError):
    """The tenant asks for more than it may. Retry after `retry_after_s`, or raise the limit."""


@dataclass(frozen=True, slots=True)
class ErrorAnswer:
    """Status and content of an error response."""

    status: int
    message: str
    type: str
    param: str | None = None
    code: str | None = None
    retry_after_s: float | None = None

    def body(self) -> dict[str, object]:
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }

    def headers(self) -> dict[str, str]:
        """Whole seconds for everybody; milliseconds for OpenAI's clients, which prefer them."""
        if self.status == 401:
            return {"www-authenticate": "Bearer"}
        if self.retry_after_s is None:
            return {}
        return {
            "retry-after": str(math.ceil(self.retry_after_s)),
            "retry-after-ms": str(math.ceil(self.retry_after_s * 1000)),
        }


def answer_of(error: KVStoreError) -> ErrorAnswer:
    """The response that says `error`. A misconfigured server is not the fault of the request."""
    return _of_client(error) or _of_cluster(error)


def _of_client(error: KVStoreError) -> ErrorAnswer | None:
    """Of those that only the gateway raises: who asks, or what was asked, is at fault."""
    message = str(error)
    match error:
        case ModelNotFoundError():
            return _invalid(message, status=404, param="model", code="model_not_found")
        case UnknownRequestError():
            return _invalid(message, status=404, code="not_found")
        case ContextLengthError():
            return _invalid(message, param="prompt", code="context_length_exceeded")
        case BadFieldError():
            return _invalid(message, param=error.param)
        case ApiKeyError():
            return _invalid(message, status=401, code="invalid_api_key")
        case NotAllowedError():
            return ErrorAnswer(403, message, "permission_error", code="permission_denied")
    return None


def _of_cluster(error: KVStoreError) -> ErrorAnswer:
    message = str(error)
    match error:
        case UnavailableError() | ConfigurationError():
            return _busy(503, message, "server_error", "service_unavailable", RETRY_AFTER_S)
        case InvalidArgumentError():
            return _invalid(message)
        case ResourceExhaustedError():
            after_s = error.retry_after_s if isinstance(error, OverloadedError) else RETRY_AFTER_S
            return _busy(429, message, "rate_limit_error", "rate_limit_exceeded", after_s)
        case DeadlineExceededError():
            return ErrorAnswer(504, message, "server_error", code="timeout")
    return ErrorAnswer(500, message, "server_error", code="internal_error")


def answer_of_status(status: int, detail: str) -> ErrorAnswer:
    """For what the HTTP layer refuses by itself: unknown route, wrong method, body too large."""
    codes = {
        404: "not_found",
        405: "method_not_allowed",
        408: "request_timeout",
        413: "request_too_large",
    }
    return _invalid(detail, status=status, code=codes.get(status))


def answer_of_validation(errors: Sequence[Mapping[str, object]]) -> ErrorAnswer:
    """For a body that is no JSON or whose fields have wrong types: the first of them is named."""
    first = errors[0]
    if first["type"] == "json_invalid":
        return _invalid(f"the body is not valid JSON: {_json_fault(first)}", code="invalid_json")
    location = first["loc"]
    assert isinstance(location, tuple)
    param = _path(location[1:])
    message = str(first["msg"]).removeprefix("Value error, ")
    if not param:
        return _invalid("the body must be a JSON object (content-type: application/json)")
    return _invalid(f"{param}: {message}", param=param)


def _invalid(
    message: str, *, status: int = 400, param: str | None = None, code: str | None = None
) -> ErrorAnswer:
    return ErrorAnswer(status, message, "invalid_request_error", param, code)


def _busy(status: int, message: str, kind: str, code: str, after_s: float) -> ErrorAnswer:
    return ErrorAnswer(status, message, kind, code=code, retry_after_s=after_s)


def _json_fault(error: Mapping[str, object]) -> str:
    context = error.get("ctx")
    return str(context["error"]) if isinstance(context, dict) else json.dumps(error["msg"])


def _path(location: Sequence[object]) -> str:
    """("messages", 0, "content") → "messages[0].content"."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in location]
    return "".join(parts).removeprefix(".")

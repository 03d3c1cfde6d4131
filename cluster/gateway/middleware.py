"""Around every request: its id, the bound of its body, its line in the log, its count."""

from __future__ import annotations

import logging
import secrets
import time
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kvstore.observability.logging import request_id
from kvstore.observability.metrics import ServingMetrics

_LOG = logging.getLogger(__name__)

_HEADER = "x-request-id"
_ID_CHARS_MAX = 128


class RequestContext:
    """ASGI middleware. Takes the client's `x-request-id` or draws one, and sends it back."""

    def __init__(self, app: ASGIApp, metrics: ServingMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        current = _id_of(Headers(scope=scope).get(_HEADER))
        status = 500
        started_s = time.monotonic()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[_HEADER] = current
            await send(message)

        token = request_id.set(current)
        try:
            await self._app(scope, receive, send_with_id)
        finally:
            self._account(scope, status, time.monotonic() - started_s)
            request_id.reset(token)

    def _account(self, scope: Scope, status: int, took_s: float) -> None:
        route = getattr(scope.get("route"), "path", "none")
        self._metrics.requests.labels(route, str(status)).inc()
        fields: dict[str, Any] = {"status": status, "took_s": round(took_s, 6)}
        _LOG.info("%s %s", scope["method"], scope["path"], extra=fields)


class BodyBound:
    """ASGI middleware. Bodies of more than `bytes_max` end in a 413, before they are in memory."""

    def __init__(self, app: ASGIApp, bytes_max: int) -> None:
        self._app = app
        self._bytes_max = bytes_max

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        received = 0

        async def receive_bounded() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._bytes_max:
                raise HTTPException(413, f"the body may have at most {self._bytes_max} bytes")
            return message

        await self._app(scope, receive_bounded, send)


def _id_of(given: str | None) -> str:
    usable = given and len(given) <= _ID_CHARS_MAX and given.isascii() and given.isprintable()
    return given if given and usable else f"req-{secrets.token_hex(12)}"

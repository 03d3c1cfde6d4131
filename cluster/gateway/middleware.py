"""Around every request: its id, the bound of its body, its line in the log, its count."""

from __future__ import annotations

import asyncio
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
BODY_READ_S = 60.0
"""Longest time for a body to arrive."""


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
    """ASGI middleware. Bodies of more than `bytes_max` end in a 413, before they are in memory;
    those that take longer than `read_s` to arrive in a 408."""

    def __init__(self, app: ASGIApp, bytes_max: int, read_s: float = BODY_READ_S) -> None:
        self._app = app
        self._bytes_max = bytes_max
        self._read_s = read_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        received = 0
        deadline_s: float | None = asyncio.get_running_loop().time() + self._read_s

        async def receive_bounded() -> Message:
            nonlocal received, deadline_s
            message = await self._by(deadline_s, receive)
            received += len(message.get("body", b""))
            if received > self._bytes_max:
                raise HTTPException(413, f"the body may have at most {self._bytes_max} bytes")
            if not message.get("more_body", False):
                deadline_s = None  # what comes now is that the client goes away, sooner or later
            return message

        await self._app(scope, receive_bounded, send)

    async def _by(self, deadline_s: float | None, receive: Receive) -> Message:
        try:
            async with asyncio.timeout_at(deadline_s):
                return await receive()
        except TimeoutError as error:
            raise HTTPException(
                408,
                f"the body did not arrive within {self._read_s:g} s; send it faster",
                {"connection": "close"},
            ) from error


def _id_of(given: str | None) -> str:
    usable = given and len(given) <= _ID_CHARS_MAX and given.isascii() and given.isprintable()
    return given if given and usable else f"req-{secrets.token_hex(12)}"

"""From an answer to an HTTP response, whole or streamed, for as long as the client is there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from cluster.gateway import sse
from cluster.gateway.answer import Answer, Piece
from cluster.gateway.errors import answer_of
from cluster.gateway.openai_format import Envelope, Format, usage_json
from kvstore.core.errors import KVStoreError

_LOG = logging.getLogger(__name__)

CLIENT_CLOSED_REQUEST = 499
"""Status of requests whose client went away. Nobody reads it but logs and metrics."""

_LAST_WORDS_S = 1.0
"""Time after the deadline in which a stream may still say that it has passed."""

R = TypeVar("R", bound=Response)


async def while_connected(request: Request, respond: Callable[[], Awaitable[R]]) -> R | Response:
    """`respond()`, cancelled as soon as the client goes away. The body must have been read."""
    response = asyncio.ensure_future(respond())
    gone = asyncio.ensure_future(_disconnected(request.receive))
    try:
        await asyncio.wait({response, gone}, return_when=asyncio.FIRST_COMPLETED)
        if response.done():
            return response.result()
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    finally:
        response.cancel()
        gone.cancel()
        await asyncio.gather(response, gone, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def whole(answer: Answer, envelope: Envelope, format_: Format) -> JSONResponse:
    choices = await answer.collect()
    body = format_.whole(envelope, choices, usage_json(answer.usages()))
    return JSONResponse(body, headers=worker_headers(answer))


class EventStream(StreamingResponse):
    """Tokens as server-sent events. Owns `resources` (the answer among them): released when the
    stream ends, however it ends.

    `deadline_s` is of the event loop's clock; a client too slow to take everything by then is cut
    off.
    """

    def __init__(
        self,
        events: AsyncIterator[bytes],
        resources: AsyncExitStack,
        *,
        headers: dict[str, str],
        deadline_s: float,
    ) -> None:
        super().__init__(events, headers=sse.HEADERS | headers, media_type="text/event-stream")
        self._resources = resources
        self._deadline_s = deadline_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._resources:
            try:
                async with asyncio.timeout_at(self._deadline_s + _LAST_WORDS_S):
                    await super().__call__(scope, receive, send)
            except TimeoutError:
                _LOG.warning("cut off a client that was too slow to read its answer")


async def events(
    answer: Answer,
    first: Piece,
    rest: AsyncIterator[Piece],
    envelope: Envelope,
    format_: Format,
    *,
    include_usage: bool,
) -> AsyncIterator[bytes]:
    """The whole stream, error or not. `first` was read before, so that errors until then have a
    status."""
    greeted: set[int] = set()
    try:
        for event in _events_of(first, envelope, format_, greeted):
            yield event
        async for piece in rest:
            for event in _events_of(piece, envelope, format_, greeted):
                yield event
        if include_usage:
            yield sse.event(format_.usage(envelope, usage_json(answer.usages())))
    except KVStoreError as error:
        yield sse.event(answer_of(error).body())
    yield sse.DONE


def _events_of(piece: Piece, envelope: Envelope, format_: Format, greeted: set[int]) -> list[bytes]:
    index, part, chunks = piece.index, piece.part, []
    if index not in greeted:
        greeted.add(index)
        chunks.append(format_.first(envelope, index))
    if part.text or part.logprobs:
        chunks.append(format_.text(envelope, index, part.text, part.logprobs))
    chunks += [format_.tool_call(envelope, index, call) for call in part.tool_calls]
    if piece.finish_reason is not None:
        chunks.append(format_.finish(envelope, index, piece.finish_reason))
    return [sse.event(chunk) for chunk in chunks if chunk is not None]


def worker_headers(answer: Answer) -> dict[str, str]:
    """Who works on the first prompt, as far as it is known now."""
    first = answer.generations[0]
    headers = {
        "x-kvstore-prefill-worker": first.prefill_worker,
        "x-kvstore-decode-worker": first.decode_worker,
    }
    return {name: value for name, value in headers.items() if value}

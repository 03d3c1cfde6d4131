"""Calls a node that runs in this process, on an event loop of its own or on the caller's."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TypeVar, cast

from google.protobuf.message import Message

from kvstore.core.errors import (
    DeadlineExceededError,
    KVStoreError,
    ProtocolError,
    UnavailableError,
)
from kvstore.transports.base import Handler
from kvstore.transports.status import from_status, to_status

R = TypeVar("R", bound=Message)


class InprocServer:
    """Serves handlers on the loop that `start` is called on; implements `Server`."""

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        self.handlers = handlers
        self.loop: asyncio.AbstractEventLoop | None = None
        """None while not serving."""

    async def start(self) -> None:
        self.loop = asyncio.get_running_loop()

    async def stop(self) -> None:
        self.loop = None

    @property
    def endpoint(self) -> str:
        return f"inproc://{id(self):x}"


class InprocChannel:
    """Implements `Channel` for callers on any event loop. Messages are handed over, not copied."""

    def __init__(self, server: InprocServer, *, max_in_flight: int = 256) -> None:
        self._server = server
        self._slots = asyncio.Semaphore(max_in_flight)
        self._closed = False

    async def call(
        self, method: str, request: Message, response_type: type[R], *, deadline_s: float
    ) -> R:
        try:
            async with asyncio.timeout(deadline_s), self._slots:
                return cast(R, await self._call(method, request))
        except KVStoreError:
            raise
        except TimeoutError as error:
            raise DeadlineExceededError(f"{method} took longer than {deadline_s:g} s") from error

    async def close(self) -> None:
        self._closed = True

    async def _call(self, method: str, request: Message) -> Message:
        loop = self._server.loop
        if loop is None or self._closed:
            raise UnavailableError("the embedded node is closed; open it again")
        handler = self._server.handlers.get(method)
        if handler is None:
            raise ProtocolError(f"the embedded node has no method {method!r}")
        call = _run(handler, request)
        if loop is asyncio.get_running_loop():
            return await call
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(call, loop))


async def _run(handler: Handler, request: Message) -> Message:
    try:
        return await handler(request)
    except KVStoreError:
        raise
    except Exception as error:  # the boundary of a call: a defect there is an error of the store
        raise from_status(*to_status(error)) from error

"""A network between a publisher and its subscribers that loses and reorders messages."""

from __future__ import annotations

import asyncio
import contextlib
import random

import zmq
import zmq.asyncio

from kvstore.events.sockets import bind, connect

LOST, LATE = 0.01, 0.02
"""Shares of the messages."""


class Relay:
    """`start` → `stop` on one event loop. Subscribers connect to `endpoint` instead."""

    def __init__(self, publisher_endpoint: str, seed: int) -> None:
        self.endpoint = ""
        self.lost = 0
        self._publisher_endpoint = publisher_endpoint
        self._rng = random.Random(seed)  # noqa: S311
        self._context = zmq.asyncio.Context()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        source, sink = self._context.socket(zmq.SUB), self._context.socket(zmq.PUB)
        connect(source, self._publisher_endpoint)
        source.setsockopt(zmq.SUBSCRIBE, b"")
        self.endpoint = bind(sink, "tcp://127.0.0.1:0")
        self._task = asyncio.create_task(self._pass_on(source, sink))

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._context.destroy(linger=0)

    async def _pass_on(self, source: zmq.asyncio.Socket, sink: zmq.asyncio.Socket) -> None:
        held_back: list[list[bytes]] = []
        while True:
            message = await source.recv_multipart()
            chance = self._rng.random()
            if chance < LOST:
                self.lost += 1
            elif chance < LOST + LATE:
                held_back.append(message)
            else:
                for frames in (message, *held_back):
                    await sink.send_multipart(frames)
                held_back.clear()

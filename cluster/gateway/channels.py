"""gRPC channels to workers, opened when first used and kept by address."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from decode_worker.wire.v1.decode_pb2_grpc import DecodeServiceStub
from kvstore.transports.grpc.channel import open_grpc
from kvstore.transports.security.interceptor import bearer
from kvstore.transports.security.keys import NO_CLIENT_KEYS, ClientKeys
from kvstore.transports.status import from_rpc_error
from model_runner.wire.v1 import generation_pb2 as generation
from prefill_worker.wire.v1.prefill_pb2_grpc import PrefillServiceStub

_OPTIONS = [
    # A worker that restarts at its old address is found again within a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Bounds an attempt to connect to a host that does not answer at all.
    ("grpc.min_reconnect_backoff_ms", 2000),
]

Chunks = AsyncGenerator[generation.GenerateChunk, None]


@dataclass(slots=True)
class _Entry:
    channel: Any
    calls: int = 0


class WorkerChannels:
    """Calls to prefill and decode workers. Belongs to one event loop; `close` ends all calls.

    The streams raise errors of `kvstore.core.errors`. Closing a stream (`contextlib.aclosing`)
    cancels its call, so that the worker stops computing. Idle channels beyond `channels_max` are
    closed, the least recently used first.
    """

    def __init__(self, *, keys: ClientKeys = NO_CLIENT_KEYS, channels_max: int = 256) -> None:
        self._keys = keys
        self._metadata = bearer(keys.token)
        self._channels_max = channels_max
        self._entries: OrderedDict[str, _Entry] = OrderedDict()

    async def prefill(
        self, address: str, request: generation.GenerateRequest, *, timeout_s: float
    ) -> Chunks:
        async with self._channel(address) as channel:
            stub = PrefillServiceStub(channel)  # type: ignore[no-untyped-call]
            call = stub.Prefill(request, timeout=timeout_s, metadata=self._metadata)
            async for chunk in _chunks(call, f"prefill worker {address}"):
                yield chunk

    async def decode(
        self, address: str, request: generation.GenerateRequest, *, timeout_s: float
    ) -> Chunks:
        async with self._channel(address) as channel:
            stub = DecodeServiceStub(channel)  # type: ignore[no-untyped-call]
            call = stub.Generate(request, timeout=timeout_s, metadata=self._metadata)
            async for chunk in _chunks(call, f"decode worker {address}"):
                yield chunk

    async def close(self) -> None:
        """Idempotent."""
        while self._entries:
            _, entry = self._entries.popitem()
            await entry.channel.close()

    @asynccontextmanager
    async def _channel(self, address: str) -> AsyncIterator[Any]:
        entry = self._entries.get(address)
        if entry is None:
            await self._close_idle()
            entry = _Entry(open_grpc(address, self._keys, _OPTIONS))
            self._entries[address] = entry
        self._entries.move_to_end(address)
        entry.calls += 1
        try:
            yield entry.channel
        finally:
            entry.calls -= 1

    async def _close_idle(self) -> None:
        excess = len(self._entries) + 1 - self._channels_max
        idle = [address for address, entry in self._entries.items() if not entry.calls]
        for address in idle[: max(excess, 0)]:
            await self._entries.pop(address).channel.close()


async def _chunks(call: Any, peer: str) -> Chunks:
    try:
        async for chunk in call:
            yield chunk
    except grpc.RpcError as error:
        raise from_rpc_error(error, peer) from error
    finally:
        call.cancel()

"""Calls a node over gRPC: the same verbs, and streams of bytes for other hosts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, TypeVar, cast

import grpc
from google.protobuf.message import Message

from kvstore.core.errors import DeadlineExceededError, KVStoreError, UnavailableError
from kvstore.transports.grpc.diagnosis import why_not_connected
from kvstore.transports.grpc.server import OPTIONS
from kvstore.transports.methods import serialize
from kvstore.transports.security.interceptor import bearer
from kvstore.transports.security.keys import NO_CLIENT_KEYS, ClientKeys
from kvstore.transports.status import from_rpc_error

RECONNECT_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)

R = TypeVar("R", bound=Message)


def open_grpc(
    address: str, keys: ClientKeys, options: Sequence[tuple[str, int]]
) -> grpc.aio.Channel:
    """A channel, with TLS where `keys` have it. Their token goes with each call: see `bearer`."""
    if keys.tls is None:
        return grpc.aio.insecure_channel(address, options=options)
    return grpc.aio.secure_channel(address, keys.tls.credentials(), options=options)


class GrpcChannel:
    """gRPC channel on the running event loop; implements `Channel`, and streams besides.

    It connects, and connects again after the peer was gone, by itself. While there is no connection
    a call waits for one, within its deadline; calls in flight when the connection breaks fail with
    UnavailableError at once.
    """

    def __init__(
        self,
        address: str,
        service: str,
        *,
        keys: ClientKeys = NO_CLIENT_KEYS,
        max_in_flight: int = 256,
    ) -> None:
        """`service` is its full name in the .proto. Connects at the first call."""
        self._address = address
        self._service = service
        self._slots = asyncio.Semaphore(max_in_flight)
        self._closed = False
        self._metadata = bearer(keys.token)
        self._uses_tls = keys.tls is not None
        self._channel = open_grpc(address, keys, (*OPTIONS, *RECONNECT_OPTIONS))

    async def call(
        self, method: str, request: Message, response_type: type[R], *, deadline_s: float
    ) -> R:
        stub = self._open_channel().unary_unary(
            self._path(method), serialize, response_type.FromString
        )
        return cast(R, await self._await(method, stub, request, deadline_s))

    async def upload(
        self,
        method: str,
        requests: AsyncIterator[Message],
        response_type: type[R],
        *,
        deadline_s: float,
    ) -> R:
        """Call of a method whose requests are a stream."""
        stub = self._open_channel().stream_unary(
            self._path(method), serialize, response_type.FromString
        )
        return cast(R, await self._await(method, stub, requests, deadline_s))

    async def download(
        self, method: str, request: Message, response_type: type[R], *, deadline_s: float
    ) -> AsyncIterator[R]:
        """Call of a method whose responses are a stream."""
        stub = self._open_channel().unary_stream(
            self._path(method), serialize, response_type.FromString
        )
        try:
            call = stub(request, timeout=deadline_s, metadata=self._metadata, wait_for_ready=True)
            async for response in call:
                yield response
        except grpc.RpcError as error:
            raise await self._map(error) from error

    async def close(self) -> None:
        self._closed = True
        await self._channel.close()

    async def _await(self, method: str, stub: Any, request: Any, deadline_s: float) -> Message:
        try:
            async with asyncio.timeout(deadline_s) as timeout, self._slots:
                deadline = timeout.when()
                assert deadline is not None
                remaining_s = deadline - asyncio.get_running_loop().time()
                call = stub(
                    request, timeout=remaining_s, metadata=self._metadata, wait_for_ready=True
                )
                return cast(Message, await call)
        except grpc.RpcError as error:
            raise await self._map(error) from error
        except TimeoutError as error:
            raise await self._late(f"{method} took longer than {deadline_s:g} s") from error

    async def _map(self, error: grpc.RpcError) -> KVStoreError:
        mapped = from_rpc_error(error, self._address)
        return (
            await self._late(str(mapped)) if isinstance(mapped, DeadlineExceededError) else mapped
        )

    async def _late(self, message: str) -> KVStoreError:
        if self._closed or self._channel.get_state() is grpc.ChannelConnectivity.READY:
            return DeadlineExceededError(message)
        return await why_not_connected(self._channel, self._address, tls=self._uses_tls)

    def _open_channel(self) -> grpc.aio.Channel:
        if self._closed:
            raise UnavailableError(f"{self._address}: the channel is closed; open a new one")
        return self._channel

    def _path(self, method: str) -> str:
        return f"/{self._service}/{method}"

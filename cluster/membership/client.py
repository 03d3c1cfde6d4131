"""The conductor over gRPC."""

from __future__ import annotations

import grpc
from google.protobuf.message import Message

from cluster.membership.verbs import ConductorVerbs
from cluster.wire.v1.conductor_pb2_grpc import ConductorServiceStub
from kvstore.transports.grpc.channel import open_grpc
from kvstore.transports.security.interceptor import bearer
from kvstore.transports.security.keys import NO_CLIENT_KEYS, ClientKeys
from kvstore.transports.status import from_rpc_error

_CHANNEL_OPTIONS = [
    # A restarted conductor should be found again within about a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


class ConductorClient(ConductorVerbs):
    """One channel to the conductor at `address` (host:port), opened by the first call."""

    def __init__(
        self, address: str, *, keys: ClientKeys = NO_CLIENT_KEYS, deadline_s: float = 5.0
    ) -> None:
        super().__init__(deadline_s)
        self._address = address
        self._keys = keys
        self._metadata = bearer(keys.token)
        self._channel: grpc.aio.Channel | None = None
        self._stub: ConductorServiceStub | None = None

    async def close(self) -> None:
        channel, self._channel, self._stub = self._channel, None, None
        if channel is not None:
            await channel.close()

    async def _ask(self, method: str, request: Message, deadline_s: float) -> Message:
        call = getattr(self._open(), method)
        try:
            response: Message = await call(request, timeout=deadline_s, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, f"conductor at {self._address}") from error
        return response

    def _open(self) -> ConductorServiceStub:
        if self._stub is None:
            self._channel = open_grpc(self._address, self._keys, _CHANNEL_OPTIONS)
            self._stub = ConductorServiceStub(self._channel)  # type: ignore[no-untyped-call]
        return self._stub

"""Serves handlers over gRPC, with the standard health and reflection services."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Mapping
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from kvstore.core.errors import ConfigurationError
from kvstore.transports.base import Handler
from kvstore.transports.methods import StreamReader, StreamWriter, request_type, serialize
from kvstore.transports.security.interceptor import TokenInterceptor
from kvstore.transports.security.keys import NO_SERVER_KEYS, ServerKeys
from kvstore.transports.status import abort

MAX_MESSAGE_BYTES = 16 << 20
OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
)
MAX_CONCURRENT_CALLS = 1_024


class GrpcServer:
    """gRPC server on the running event loop; implements `Server`.

    `readers` serve methods with a stream of requests, `writers` those with a stream of responses.
    Bounds: message size, and MAX_CONCURRENT_CALLS, beyond which gRPC answers RESOURCE_EXHAUSTED.
    Callers: with `keys.clients`, each call's caller is that of its token.
    """

    def __init__(
        self,
        service: ServiceDescriptor,
        handlers: Mapping[str, Handler],
        address: str,
        *,
        readers: Mapping[str, StreamReader] | None = None,
        writers: Mapping[str, StreamWriter] | None = None,
        keys: ServerKeys = NO_SERVER_KEYS,
        drain_s: float = 2.0,
    ) -> None:
        self._service = service
        self._handlers = handlers
        self._readers = readers or {}
        self._writers = writers or {}
        self._address = address
        self._keys = keys
        self._drain_s = drain_s
        self._server: grpc.aio.Server | None = None
        self._health = health.aio.HealthServicer()
        self.port = 0

    async def start(self) -> None:
        assert self._server is None, "started once"
        server = make_server(self._keys)
        server.add_generic_rpc_handlers((self._generic_handler(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (self._service.full_name, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        self.port = listen(server, self._address, self._keys)
        self._server = server
        await server.start()
        for name in ("", self._service.full_name):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def stop(self) -> None:
        if self._server is None:
            return
        server, self._server = self._server, None
        await self._health.enter_graceful_shutdown()
        await server.stop(self._drain_s)

    async def refuse(self) -> None:
        """Say NOT_SERVING to whoever asks after the service's health, from now on: its part of the
        process is beyond repair."""
        for name in ("", self._service.full_name):
            await self._health.set(name, health_pb2.HealthCheckResponse.NOT_SERVING)

    @property
    def endpoint(self) -> str:
        """host:port"""
        return f"{self._address.rpartition(':')[0]}:{self.port}"

    def _generic_handler(self) -> grpc.GenericRpcHandler:
        inputs = {m.name: request_type(m) for m in self._service.methods}
        methods = {
            **{name: _unary(handler, inputs[name]) for name, handler in self._handlers.items()},
            **{name: _reader(handler, inputs[name]) for name, handler in self._readers.items()},
            **{name: _writer(handler, inputs[name]) for name, handler in self._writers.items()},
        }
        return grpc.method_handlers_generic_handler(self._service.full_name, methods)


def make_server(keys: ServerKeys) -> grpc.aio.Server:
    """A server that is not bound yet, with this project's bounds, asking for what `keys` say."""
    # Without SO_REUSEPORT off, a second server on a taken port would share it silently.
    options = (*OPTIONS, ("grpc.so_reuseport", 0))
    interceptors = () if keys.clients is None else (TokenInterceptor(keys.clients),)
    return grpc.aio.server(
        options=options,
        maximum_concurrent_rpcs=MAX_CONCURRENT_CALLS,
        interceptors=interceptors,
    )


def listen(server: grpc.aio.Server, address: str, keys: ServerKeys) -> int:
    """Bind, with TLS where `keys` have it; the real port. Raises ConfigurationError."""
    try:
        if keys.tls is None:
            return int(server.add_insecure_port(address))
        return int(server.add_secure_port(address, keys.tls.credentials()))
    except RuntimeError as error:
        raise ConfigurationError(
            f"cannot listen on {address}: the address is in use or not of this host, or the "
            "certificate and key do not fit each other; choose a free host:port"
        ) from error


def _unary(handler: Handler, input_type: type[Message]) -> grpc.RpcMethodHandler:
    async def serve(request: Message, context: grpc.aio.ServicerContext[Any, Any]) -> Message:
        return await _answer(handler(request), context)

    return grpc.unary_unary_rpc_method_handler(serve, input_type.FromString, serialize)


def _reader(handler: StreamReader, input_type: type[Message]) -> grpc.RpcMethodHandler:
    async def serve(
        requests: AsyncIterator[Message], context: grpc.aio.ServicerContext[Any, Any]
    ) -> Message:
        return await _answer(handler(requests), context)

    return grpc.stream_unary_rpc_method_handler(serve, input_type.FromString, serialize)


def _writer(handler: StreamWriter, input_type: type[Message]) -> grpc.RpcMethodHandler:
    async def serve(
        request: Message, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[Message]:
        try:
            async for response in handler(request):
                yield response
        except Exception as error:  # the boundary of a call: every error becomes its answer
            await abort(context, error)

    return grpc.unary_stream_rpc_method_handler(serve, input_type.FromString, serialize)


async def _answer(call: Awaitable[Message], context: grpc.aio.ServicerContext[Any, Any]) -> Message:
    try:
        return await call
    except Exception as error:  # the boundary of a call: every error becomes its answer
        await abort(context, error)

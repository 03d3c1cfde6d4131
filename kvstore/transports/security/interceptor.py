"""Bearer tokens on gRPC calls."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeAlias

import grpc
from grpc_health.v1 import health

from kvstore.core.errors import KVStoreError, UnauthenticatedError
from kvstore.transports.security.caller import Caller, set_caller
from kvstore.transports.security.clients import Clients
from kvstore.transports.status import abort

HEADER = "authorization"
_SCHEME = "bearer "
_OPEN = f"/{health.SERVICE_NAME}/"

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Metadata = Sequence[tuple[str, str]]


def bearer(token: str | None) -> Metadata | None:
    """Metadata that shows `token`, for a client's calls."""
    return None if token is None else ((HEADER, f"Bearer {token}"),)


class TokenInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Sets the caller of each call, or answers it UnauthenticatedError.

    Reflection is asked for a token like any other service. Health is open: those who probe have no
    credentials, and learn no more than that the server serves.
    """

    def __init__(self, clients: Clients) -> None:
        self._clients = clients

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith(_OPEN):
            return handler
        try:
            caller = self._caller(handler_call_details.invocation_metadata or ())
        except UnauthenticatedError as error:
            return _refuse(handler, error)
        set_caller(caller)  # gRPC runs the handler in this call's task
        return handler

    def _caller(self, metadata: Metadata) -> Caller:
        values = [value for key, value in metadata if key == HEADER]
        if len(values) != 1 or not values[0].lower().startswith(_SCHEME):
            raise UnauthenticatedError(
                "this server asks for a token; send the metadata `authorization: Bearer TOKEN`"
            )
        return self._clients.caller_of_token(values[0][len(_SCHEME) :].strip())


def _refuse(handler: grpc.RpcMethodHandler, error: KVStoreError) -> grpc.RpcMethodHandler:
    """A handler of the same shape that ends every call with `error`."""

    async def end(_: object, context: Context) -> None:
        await abort(context, error)

    async def end_stream(_: object, context: Context) -> AsyncIterator[None]:
        await abort(context, error)
        yield  # makes it a generator

    if handler.response_streaming:
        stream = grpc.stream_stream_rpc_method_handler
        return (stream if handler.request_streaming else grpc.unary_stream_rpc_method_handler)(
            end_stream
        )
    unary = grpc.unary_unary_rpc_method_handler
    return (grpc.stream_unary_rpc_method_handler if handler.request_streaming else unary)(end)

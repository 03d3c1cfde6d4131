"""ConductorService over gRPC."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import Message

from cluster.membership.methods import REQUEST_TYPES, SERVICE, ConductorMethods
from kvstore.core.errors import KVStoreError
from kvstore.transports.status import abort

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


def service_handler(methods: ConductorMethods) -> grpc.GenericRpcHandler:
    """Errors of the project become status codes; gRPC itself reports defects. It cancels a handler
    whose caller has gone or whose deadline is over."""
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(
            _answered(methods, name), request_type.FromString, _serialized
        )
        for name, request_type in REQUEST_TYPES.items()
    }
    return grpc.method_handlers_generic_handler(SERVICE.full_name, handlers)


def _answered(
    methods: ConductorMethods, name: str
) -> Callable[[Message, Context], Awaitable[Message]]:
    async def answer(request: Message, context: Context) -> Message:
        try:
            return await methods.call(name, request)
        except KVStoreError as error:
            await abort(context, error)

    return answer


def _serialized(message: Message) -> bytes:
    packed: bytes = message.SerializeToString()
    return packed

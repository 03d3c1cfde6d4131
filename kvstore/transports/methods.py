"""A service's handlers and the types of their messages, as its .proto declares them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from kvstore.core.errors import ProtocolError
from kvstore.transports.base import Handler

StreamReader = Callable[[AsyncIterator[Message]], Awaitable[Message]]
"""Serves a method whose requests are a stream."""

StreamWriter = Callable[[Message], AsyncIterator[Message]]
"""Serves a method whose responses are a stream."""


@dataclass(frozen=True, slots=True)
class Method:
    """A unary method: how to parse its request, and who serves it."""

    request_type: type[Message]
    handler: Handler


def bind(service: ServiceDescriptor, handlers: Mapping[str, Handler]) -> dict[str, Method]:
    """`handlers` with the request types that `service` declares for them."""
    declared = service.methods_by_name
    assert handlers.keys() <= set(declared.keys()), "a handler for a method that the service lacks"
    return {name: Method(request_type(declared[name]), handlers[name]) for name in handlers}


def request_type(method: MethodDescriptor) -> type[Message]:
    return GetMessageClass(method.input_type)


def parse(message_type: type[Message], payload: bytes) -> Message:
    """Raises ProtocolError."""
    try:
        return message_type.FromString(payload)
    except DecodeError as error:
        raise ProtocolError(
            f"{len(payload)} bytes are no {message_type.DESCRIPTOR.name}; do both ends run the "
            "same version?"
        ) from error


def serialize(message: Message) -> bytes:
    """The method of the message's own class: that of `Message` itself would give nothing."""
    return message.SerializeToString()

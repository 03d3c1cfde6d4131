"""Making the ZeroMQ sockets of the event plane: bounded, and gone at once when closed."""

from __future__ import annotations

from typing import Any

import zmq

from kvstore.core.errors import ConfigurationError
from kvstore.events.codec import MAX_MESSAGE_BYTES


def bind(socket: zmq.Socket[Any], endpoint: str) -> str:
    """Bind and return the endpoint with its real port.

    Raises ConfigurationError if it cannot be used.
    """
    limit(socket)
    try:
        socket.bind(endpoint)
    except zmq.ZMQError as error:
        raise ConfigurationError(
            f"cannot listen on {endpoint} for block events: {error.strerror}; choose a free"
            " endpoint such as tcp://127.0.0.1:0"
        ) from error
    return socket.getsockopt_string(zmq.LAST_ENDPOINT)


def connect(socket: zmq.Socket[Any], endpoint: str) -> None:
    """Raises ConfigurationError if the endpoint is none; that nobody is there is no error."""
    limit(socket)
    try:
        socket.connect(endpoint)
    except zmq.ZMQError as error:
        raise ConfigurationError(
            f"cannot use {endpoint!r} as an endpoint of block events: {error.strerror}; it should"
            " look like tcp://HOST:PORT or ipc://PATH"
        ) from error


def limit(socket: zmq.Socket[Any]) -> None:
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)

"""Making the ZeroMQ sockets of the event plane: bounded, and gone at once when closed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq

from kvstore.core.errors import ConfigurationError
from kvstore.events.codec import MAX_MESSAGE_BYTES

Secure = Callable[[zmq.Socket[Any]], None]
"""Makes a tcp:// socket encrypt and authenticate; called before it binds or connects."""


def bind(socket: zmq.Socket[Any], endpoint: str, secure: Secure | None = None) -> str:
    """Bind and return the endpoint with its real port. An ipc:// socket is for its owner only.

    Raises ConfigurationError if it cannot be used.
    """
    limit(socket)
    if secure is not None and endpoint.startswith("tcp://"):
        secure(socket)
    try:
        socket.bind(endpoint)
    except zmq.ZMQError as error:
        raise ConfigurationError(
            f"cannot listen on {endpoint} for block events: {error.strerror}; choose a free"
            " endpoint such as tcp://127.0.0.1:0"
        ) from error
    bound = socket.getsockopt_string(zmq.LAST_ENDPOINT)
    keep_from_others(bound)
    return bound


def keep_from_others(endpoint: str) -> None:
    """Let only the owner open the socket file of a bound ipc:// endpoint.

    Until then the process's umask does: without its write bit for others they cannot connect.
    """
    scheme, _, path = endpoint.partition("://")
    if scheme == "ipc" and not path.startswith("@"):  # an abstract name has no file
        Path(path.rstrip("\0")).chmod(0o600)


def connect(socket: zmq.Socket[Any], endpoint: str, secure: Secure | None = None) -> None:
    """Raises ConfigurationError if the endpoint is none; that nobody is there is no error."""
    limit(socket)
    if secure is not None and endpoint.startswith("tcp://"):
        secure(socket)
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

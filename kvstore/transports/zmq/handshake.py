"""What the monitor of a client's socket tells of its connection."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import zmq

from kvstore.core.errors import UnauthenticatedError

_REFUSED = zmq.EVENT_HANDSHAKE_FAILED_AUTH
_FOREIGN = zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
_FAILED = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL

MONITORED = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CLOSED
    | _REFUSED
    | _FOREIGN
    | _FAILED
)


class Change(Enum):
    CONNECTED = auto()
    DISCONNECTED = auto()
    ABSENT = auto()
    """Nobody listens there; ZeroMQ goes on trying."""
    REJECTED = auto()
    """Somebody listens, but the handshake fails; ZeroMQ goes on trying."""
    GIVEN_UP = auto()
    """The same, and ZeroMQ does not try again by itself."""


@dataclass(frozen=True, slots=True)
class Connection:
    """State of a connection after an event of the socket's monitor."""

    change: Change
    error: UnauthenticatedError | None = None
    """Why it was rejected or given up."""


def read_event(endpoint: str, event: Mapping[str, Any]) -> Connection:
    match event["event"]:
        case zmq.EVENT_HANDSHAKE_SUCCEEDED:
            return Connection(Change.CONNECTED)
        case zmq.EVENT_DISCONNECTED:
            return Connection(Change.DISCONNECTED)
        case zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            return Connection(
                Change.GIVEN_UP,
                UnauthenticatedError(
                    f"{endpoint}: the node refuses this CURVE key; have its public key listed in "
                    "the node's `security.clients`, unexpired and with the role that is needed"
                ),
            )
        case zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            return Connection(Change.GIVEN_UP, _mismatch(endpoint))
        case zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
            return Connection(Change.REJECTED, _mismatch(endpoint))
    return Connection(Change.ABSENT)


def _mismatch(endpoint: str) -> UnauthenticatedError:
    return UnauthenticatedError(
        f"{endpoint}: somebody listens there, but the handshake fails; check that CURVE is on at "
        "both ends or at neither, that `curve_server_key` is this node's public key, and that the "
        "endpoint is one of ZeroMQ"
    )

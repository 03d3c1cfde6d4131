"""CURVE on ZeroMQ sockets: who may connect to a server, and what a client shows.

CURVE guards tcp:// endpoints. An ipc:// socket is a file that only its owner may open.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from threading import Thread
from typing import Any

import zmq
from zmq.utils import z85

from kvstore.core.errors import ConfigurationError, UnauthenticatedError
from kvstore.transports.security.caller import Caller, Role
from kvstore.transports.security.clients import Clients
from kvstore.transports.security.files import read_secret, read_trusted

KEY_CHARACTERS = 40
"""A CURVE key in Z85."""

Secure = Callable[[zmq.Socket[Any]], None]
"""Turns CURVE on for a socket that has not bound or connected yet."""

_ZAP_ENDPOINT = "inproc://zeromq.zap.01"
_MAX_REQUEST_BYTES = 4_096


class Admit(Enum):
    """Which of the listed clients may connect to a socket. The value is its ZAP domain."""

    LISTED = b"listed"
    """All: the server asks `CurveServer.caller` of each message, and can tell one that has
    expired."""
    UNEXPIRED = b"unexpired"
    PEERS = b"peers"
    """Unexpired, with the role of a peer."""


@dataclass(frozen=True)
class CurveServer:
    """Key pair of a server, and the clients that it lets in. Used by any number of contexts."""

    clients: Clients
    secret_key: str = field(repr=False)

    def secure(self, admit: Admit) -> Secure:
        """For a socket that will bind. The handshakes of its context are answered on a thread that
        ends with the context; so a context serves one CurveServer."""

        def apply(socket: zmq.Socket[Any]) -> None:
            _answer_handshakes(socket.context, self.clients)
            socket.setsockopt(zmq.ZAP_DOMAIN, admit.value)
            socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # without an answer nobody gets in
            socket.setsockopt(zmq.CURVE_SERVER, 1)
            socket.setsockopt(zmq.CURVE_SECRETKEY, self.secret_key.encode())

        return apply

    def caller(self, frame: zmq.Frame) -> Caller:
        """Who sent a frame that was received with copy=False.

        Raises UnauthenticatedError where its credentials have expired since the handshake.
        """
        user_id = frame.get("User-Id")
        assert isinstance(user_id, str), "of a socket made secure"
        return self.clients.caller_of_key(user_id)


@dataclass(frozen=True)
class CurveClient:
    """A client's key pair, and the public key by which it knows its servers."""

    server_key: str
    public_key: str
    secret_key: str = field(repr=False)

    def secure(self, socket: zmq.Socket[Any]) -> None:
        """For a socket that will connect: a `Secure`."""
        socket.setsockopt(zmq.CURVE_SERVERKEY, self.server_key.encode())
        socket.setsockopt(zmq.CURVE_PUBLICKEY, self.public_key.encode())
        socket.setsockopt(zmq.CURVE_SECRETKEY, self.secret_key.encode())


@dataclass(frozen=True)
class KeyPair:
    public_key: str
    secret_key: str = field(repr=False)


def make_key_pair() -> KeyPair:
    public, secret = zmq.curve_keypair()
    return KeyPair(public.decode(), secret.decode())


def load_server(setting: str, secret_key: Path, clients: Clients) -> CurveServer:
    """Raises ConfigurationError."""
    return CurveServer(clients, _key(setting, secret_key, read_secret(setting, secret_key)))


def load_client(prefix: str, server_key: Path, secret_key: Path) -> CurveClient:
    """Raises ConfigurationError. `prefix` names the settings in it."""
    public_setting, secret_setting = f"{prefix}.curve_server_key", f"{prefix}.curve_secret_key"
    server = _key(public_setting, server_key, read_trusted(public_setting, server_key))
    secret = _key(secret_setting, secret_key, read_secret(secret_setting, secret_key))
    return CurveClient(server, zmq.curve_public(secret.encode()).decode(), secret)


def is_guarded(endpoint: str) -> bool:
    """Whether CURVE is for this endpoint."""
    return endpoint.startswith("tcp://")


def _key(setting: str, path: Path, text: bytes) -> str:
    key = text.strip()
    try:
        if len(key) == KEY_CHARACTERS:
            z85.decode(key)
            return key.decode()
    except (KeyError, ValueError):
        pass
    raise ConfigurationError(
        f"{setting}: {path} holds no CURVE key of {KEY_CHARACTERS} characters (Z85); make one with "
        "`kvstore keys FOLDER`"
    )


def _answer_handshakes(context: zmq.Context[Any], clients: Clients) -> None:
    socket: zmq.Socket[bytes] = zmq.Context.shadow(context).socket(zmq.REP)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.MAXMSGSIZE, _MAX_REQUEST_BYTES)
    try:
        socket.bind(_ZAP_ENDPOINT)
    except zmq.ZMQError as error:
        socket.close()
        if error.errno == zmq.EADDRINUSE:  # another socket of the context has them answered
            return
        raise
    Thread(target=_answer, args=(socket, clients), name="kvstore-zap", daemon=True).start()


def _answer(socket: zmq.Socket[bytes], clients: Clients) -> None:
    """ZAP 1.0 (rfc.zeromq.org/spec/27): one request for each handshake."""
    try:
        while True:
            version, request_id, *request = socket.recv_multipart()
            user_id = _user_id(request, clients)
            status = [b"400", b"", b""] if user_id is None else [b"200", b"", user_id]
            socket.send_multipart([version, request_id, *status, b""])
    except zmq.ContextTerminated:
        socket.close()


def _user_id(request: list[bytes], clients: Clients) -> bytes | None:
    """The client's public key, if it may come in."""
    domain, _address, _routing_id, mechanism, *credentials = request
    if mechanism != b"CURVE":
        return None
    key: bytes = z85.encode(credentials[0])
    return key if _admits(Admit(domain), clients, key.decode()) else None


def _admits(admit: Admit, clients: Clients, key: str) -> bool:
    if admit is Admit.LISTED:
        return clients.knows_key(key)
    try:
        caller = clients.caller_of_key(key)
    except UnauthenticatedError:
        return False
    return admit is Admit.UNEXPIRED or Role.PEER in caller.roles

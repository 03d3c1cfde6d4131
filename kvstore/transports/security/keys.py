"""Credentials as transports use them: read from the files that the settings name."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from kvstore.core.errors import ConfigurationError
from kvstore.transports.security import curve
from kvstore.transports.security.clients import Clients
from kvstore.transports.security.config import ClientSecurity, ServerSecurity
from kvstore.transports.security.curve import Admit, CurveClient, CurveServer, Secure
from kvstore.transports.security.files import read_secret
from kvstore.transports.security.tls import ClientTls, ServerTls, read_certificate, read_key

T = TypeVar("T")


@dataclass(frozen=True)
class ServerKeys:
    """Of one server. Nothing set: open."""

    tls: ServerTls | None = None
    curve: CurveServer | None = None
    clients: Clients | None = None
    """Whose tokens gRPC asks for; None = for none."""

    def curve_for(self, endpoint: str) -> CurveServer | None:
        """None where the endpoint has no CURVE: it is ipc://, or CURVE is off."""
        return self.curve if curve.is_guarded(endpoint) else None

    def secure(self, admit: Admit) -> Secure | None:
        """For tcp:// sockets that will bind; None where CURVE is off."""
        return None if self.curve is None else self.curve.secure(admit)


@dataclass(frozen=True)
class ClientKeys:
    """Of one client. Nothing set: it speaks in clear and shows nothing."""

    tls: ClientTls | None = None
    curve: CurveClient | None = None
    token: str | None = field(default=None, repr=False)

    def curve_for(self, endpoint: str) -> CurveClient | None:
        """None where the endpoint has no CURVE: it is ipc://, or CURVE is off."""
        return self.curve if curve.is_guarded(endpoint) else None

    @property
    def secure(self) -> Secure | None:
        """For tcp:// sockets that will connect; None where CURVE is off."""
        return None if self.curve is None else self.curve.secure


NO_SERVER_KEYS = ServerKeys()
NO_CLIENT_KEYS = ClientKeys()


def load_server_keys(config: ServerSecurity, prefix: str = "security") -> ServerKeys:
    """Reads the files. Raises ConfigurationError that names the setting, `prefix` before it."""
    clients = _load_clients(config, prefix)
    curve_server = None
    if config.curve_secret_key is not None:
        listed = _needed(clients, f"{prefix}.curve_secret_key", f"{prefix}.clients")
        setting = f"{prefix}.curve_secret_key"
        curve_server = curve.load_server(setting, config.curve_secret_key, listed)
    return ServerKeys(_load_server_tls(config, prefix), curve_server, clients)


def load_client_keys(config: ClientSecurity, prefix: str = "security") -> ClientKeys:
    """Reads the files. Raises ConfigurationError that names the setting, `prefix` before it."""
    tls = _load_client_tls(config, prefix)
    token = None
    if config.token_file is not None:
        _needed(tls, f"{prefix}.token_file", f"{prefix}.ca: a token must not travel in clear")
        token = _read_token(f"{prefix}.token_file", config.token_file)
    return ClientKeys(tls, _load_client_curve(config, prefix), token)


def _load_clients(config: ServerSecurity, prefix: str) -> Clients | None:
    if config.clients is None:
        return None
    _needed(
        config.tls_cert or config.curve_secret_key,
        f"{prefix}.clients",
        f"{prefix}.tls_cert, {prefix}.curve_secret_key or both",
    )
    return Clients.load(f"{prefix}.clients", config.clients)


def _load_server_tls(config: ServerSecurity, prefix: str) -> ServerTls | None:
    names = (f"{prefix}.tls_cert", f"{prefix}.tls_key", f"{prefix}.tls_client_ca")
    if config.tls_cert is None:
        _not_alone(config.tls_key, names[1], names[0])
        _not_alone(config.tls_client_ca, names[2], names[0])
        return None
    key = _needed(config.tls_key, names[0], names[1])
    client_ca = config.tls_client_ca
    return ServerTls(
        read_certificate(names[0], config.tls_cert),
        read_key(names[1], key),
        None if client_ca is None else read_certificate(names[2], client_ca),
    )


def _load_client_tls(config: ClientSecurity, prefix: str) -> ClientTls | None:
    names = (f"{prefix}.ca", f"{prefix}.cert", f"{prefix}.key")
    if config.ca is None:
        _not_alone(config.cert, names[1], names[0])
        _not_alone(config.key, names[2], names[0])
        return None
    ca = read_certificate(names[0], config.ca)
    if config.cert is None:
        _not_alone(config.key, names[2], names[1])
        return ClientTls(ca)
    key = _needed(config.key, names[1], names[2])
    return ClientTls(ca, read_certificate(names[1], config.cert), read_key(names[2], key))


def _load_client_curve(config: ClientSecurity, prefix: str) -> CurveClient | None:
    names = (f"{prefix}.curve_server_key", f"{prefix}.curve_secret_key")
    if config.curve_server_key is None:
        _not_alone(config.curve_secret_key, names[1], names[0])
        return None
    secret = _needed(config.curve_secret_key, names[0], names[1])
    return curve.load_client(prefix, config.curve_server_key, secret)


def _read_token(setting: str, path: Path) -> str:
    try:
        token = read_secret(setting, path).decode("ascii").strip()
    except UnicodeDecodeError:
        token = ""
    if not token or not token.isprintable() or " " in token:
        raise ConfigurationError(f"{setting}: {path} holds no token; write one line with the token")
    return token


def _needed(value: T | None, setting: str, needs: str) -> T:
    if value is None:
        raise ConfigurationError(f"{setting} needs {needs}; set both or neither")
    return value


def _not_alone(value: Path | None, setting: str, needs: str) -> None:
    if value is not None:
        raise ConfigurationError(f"{setting} needs {needs}; set both or neither")

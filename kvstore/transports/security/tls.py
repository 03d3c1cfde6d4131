"""TLS of gRPC services."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import grpc

from kvstore.core.errors import ConfigurationError
from kvstore.transports.security.files import read_secret, read_trusted


@dataclass(frozen=True)
class ServerTls:
    certificate: bytes
    key: bytes = field(repr=False)
    client_ca: bytes | None = None
    """Clients must show a certificate that it signed; None = they need none."""

    def credentials(self) -> grpc.ServerCredentials:
        return grpc.ssl_server_credentials(
            [(self.key, self.certificate)],
            root_certificates=self.client_ca,
            require_client_auth=self.client_ca is not None,
        )


@dataclass(frozen=True)
class ClientTls:
    ca: bytes
    certificate: bytes | None = None
    key: bytes | None = field(default=None, repr=False)

    def credentials(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(self.ca, self.key, self.certificate)


def read_certificate(setting: str, path: Path) -> bytes:
    """Raises ConfigurationError if the file is no PEM certificate."""
    return _pem(setting, path, read_trusted(setting, path), b"CERTIFICATE-----")


def read_key(setting: str, path: Path) -> bytes:
    """Raises ConfigurationError if the file is no PEM private key, or others can read it."""
    return _pem(setting, path, read_secret(setting, path), b"PRIVATE KEY-----")


def _pem(setting: str, path: Path, text: bytes, label: bytes) -> bytes:
    if b"-----BEGIN " not in text or label not in text:
        kind = label.decode().rstrip("-").lower()
        raise ConfigurationError(
            f"{setting}: {path} holds no {kind} in PEM form; give one that does"
        )
    return text

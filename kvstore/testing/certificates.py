"""Credentials for tests: a certificate authority with its certificates, tokens, CURVE keys.

Needs the package `cryptography`.
"""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

from kvstore.transports.security.caller import Role
from kvstore.transports.security.clients import ClientEntry, Clients, token_digest
from kvstore.transports.security.config import ClientSecurity, ServerSecurity
from kvstore.transports.security.curve import CurveClient, CurveServer, make_key_pair
from kvstore.transports.security.files import write_new
from kvstore.transports.security.keys import ClientKeys, ServerKeys
from kvstore.transports.security.tls import ClientTls, ServerTls

CA = "kvstore-test-ca"
"""Name of the authority that signs the servers' certificates."""

_VALID = timedelta(days=1)


@dataclass(frozen=True)
class Certificate:
    """PEM texts."""

    certificate: bytes
    key: bytes

    def write(self, folder: Path, name: str) -> tuple[Path, Path]:
        """NAME.crt and NAME.key, the key for its owner only."""
        certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
        write_new(certificate, self.certificate.decode(), 0o644)
        write_new(key, self.key.decode(), 0o600)
        return certificate, key


class Authority:
    """A CA that signs certificates for 127.0.0.1 and localhost, valid for a day."""

    def __init__(self, name: str) -> None:
        self._name = _name(name)
        self._key = ec.generate_private_key(ec.SECP256R1())
        signed = (
            _builder(self._name, self._name, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.certificate = signed.public_bytes(Encoding.PEM)

    def issue(self, name: str) -> Certificate:
        key = ec.generate_private_key(ec.SECP256R1())
        hosts = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        signed = (
            _builder(_name(name), self._name, key.public_key())
            .add_extension(x509.SubjectAlternativeName(hosts), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return Certificate(signed.public_bytes(Encoding.PEM), pem)


@cache
def authority(name: str) -> Authority:
    """One for each name, made once: keys cost time."""
    return Authority(name)


@dataclass(frozen=True)
class Identity:
    """What one client of a test has, and the entry by which servers know it."""

    entry: ClientEntry
    token: str
    curve: CurveClient

    def keys(self, *, certificate: Certificate | None = None, ca: str = CA) -> ClientKeys:
        """For TLS with a token, and for CURVE."""
        shown = (certificate.certificate, certificate.key) if certificate else (None, None)
        tls = ClientTls(authority(ca).certificate, *shown)
        return ClientKeys(tls, self.curve, self.token)


class SecureServer:
    """Key pair and certificate of a server, and the clients that it knows."""

    def __init__(self) -> None:
        pair = make_key_pair()
        self.public_key, self._secret_key = pair.public_key, pair.secret_key
        self._certificate = authority(CA).issue("server")

    def identity(
        self,
        name: str,
        tenant: str | None = "",
        roles: frozenset[Role] = frozenset({Role.CLIENT}),
        expires: datetime | None = None,
    ) -> Identity:
        pair = make_key_pair()
        token = secrets.token_urlsafe(32)
        entry = ClientEntry(
            name=name,
            token_sha256=token_digest(token).hex(),
            curve_public_key=pair.public_key,
            tenant=tenant,
            roles=roles,
            expires=expires,
        )
        return Identity(
            entry, token, CurveClient(self.public_key, pair.public_key, pair.secret_key)
        )

    def keys(self, *identities: Identity, client_ca: str | None = None) -> ServerKeys:
        """TLS with tokens, and CURVE. `client_ca`: clients must show its certificates as well."""
        clients = Clients([identity.entry for identity in identities])
        ca = authority(client_ca).certificate if client_ca else None
        tls = ServerTls(self._certificate.certificate, self._certificate.key, ca)
        return ServerKeys(tls, CurveServer(clients, self._secret_key), clients)


class CredentialFiles:
    """Files of one server and of its clients in `folder`, as settings name them."""

    def __init__(self, folder: Path, entries: Mapping[str, str]) -> None:
        """`entries` are TOML lines (roles, tenant, expires), by the name of each client."""
        self._folder = folder
        write_new(folder / "ca.crt", authority(CA).certificate.decode(), 0o644)
        certificate, key = authority(CA).issue("server").write(folder, "server")
        pair = make_key_pair()
        write_new(folder / "server.secret", pair.secret_key, 0o600)
        write_new(folder / "server.public", pair.public_key, 0o644)
        listed = "\n".join(self._write_client(name, lines) for name, lines in entries.items())
        write_new(folder / "clients.toml", listed, 0o644)
        self.server = ServerSecurity(
            tls_cert=certificate,
            tls_key=key,
            clients=folder / "clients.toml",
            curve_secret_key=folder / "server.secret",
        )

    def client(self, name: str) -> ClientSecurity:
        return ClientSecurity(
            ca=self._folder / "ca.crt",
            token_file=self._folder / f"{name}.token",
            curve_server_key=self._folder / "server.public",
            curve_secret_key=self._folder / f"{name}.secret",
        )

    def _write_client(self, name: str, lines: str) -> str:
        pair, token = make_key_pair(), secrets.token_urlsafe(32)
        write_new(self._folder / f"{name}.secret", pair.secret_key, 0o600)
        write_new(self._folder / f"{name}.token", token, 0o600)
        return (
            f"[[client]]\nname = '{name}'\ntoken_sha256 = '{token_digest(token).hex()}'\n"
            f"curve_public_key = '{pair.public_key}'\n{lines}\n"
        )


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _VALID)
        .not_valid_after(now + _VALID)
    )

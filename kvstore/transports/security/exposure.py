"""What a server may listen on with the keys that it has."""

from __future__ import annotations

import ipaddress

from kvstore.core.errors import ConfigurationError
from kvstore.transports.security.keys import ServerKeys


def check_grpc(setting: str, address: str, keys: ServerKeys, *, allow_insecure: bool) -> None:
    """Raises ConfigurationError if anybody on the network could call the service at `address`, or
    if it would take tokens in clear."""
    if address.startswith("unix:"):
        return
    tls = keys.tls
    if keys.clients is not None and tls is None:
        raise ConfigurationError(
            f"{setting} {address}: with security.clients tokens would travel in clear; set "
            "security.tls_cert, or listen on unix:///PATH"
        )
    if tls is not None and (keys.clients is not None or tls.client_ca is not None):
        return
    if not allow_insecure and not is_loopback(address.rpartition(":")[0]):
        raise ConfigurationError(
            f"{setting} {address}: anybody on the network could read and write blocks there; set "
            "security.tls_cert with security.clients or security.tls_client_ca, listen on "
            "127.0.0.1, or set allow_insecure on a network where all are trusted"
        )


def check_zmq(setting: str, endpoint: str, keys: ServerKeys, *, allow_insecure: bool) -> None:
    """Raises ConfigurationError if anybody on the network could use the socket at `endpoint`, or if
    it would stand open beside gRPC services that ask for tokens."""
    if endpoint.startswith("ipc://@"):
        raise ConfigurationError(
            f"{setting} {endpoint}: an abstract name has no file whose mode keeps others out; "
            "listen on ipc:///PATH"
        )
    if not endpoint.startswith("tcp://") or keys.curve is not None:
        return
    if keys.clients is not None:
        raise ConfigurationError(
            f"{setting} {endpoint}: with security.clients this socket would stand open beside them;"
            " set security.curve_secret_key, or listen on ipc:///PATH"
        )
    if not allow_insecure and not is_loopback(endpoint[len("tcp://") :].rpartition(":")[0]):
        raise ConfigurationError(
            f"{setting} {endpoint}: anybody on the network could use it; set "
            "security.curve_secret_key and security.clients, listen on 127.0.0.1, or set "
            "allow_insecure on a network where all are trusted"
        )


def is_loopback(host: str) -> bool:
    """Whether only this host reaches it. A name other than localhost may be anywhere."""
    bare = host.strip("[]")
    if bare == "localhost":
        return True
    try:
        return ipaddress.ip_address(bare).is_loopback
    except ValueError:
        return False

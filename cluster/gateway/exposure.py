"""What the gateway may listen on with the keys that it has."""

from __future__ import annotations

from cluster.gateway.config import GatewayConfig
from kvstore.core.errors import ConfigurationError
from kvstore.transports.security.exposure import is_loopback
from kvstore.transports.security.tls import read_certificate, read_key


def check_exposure(config: GatewayConfig) -> None:
    """Raises ConfigurationError if anybody on the network could use the gateway, or read the keys
    that are sent to it, or if the files of TLS cannot be used."""
    if (config.tls_cert is None) != (config.tls_key is None):
        raise ConfigurationError("gateway.tls_cert needs gateway.tls_key; set both or neither")
    if config.tls_cert is not None and config.tls_key is not None:
        read_certificate("gateway.tls_cert", config.tls_cert)
        read_key("gateway.tls_key", config.tls_key)
    if config.allow_insecure or is_loopback(config.host):
        return
    if config.clients is None:
        raise ConfigurationError(
            f"gateway.host {config.host}: anybody on the network could use the models there; set "
            "gateway.clients, listen on 127.0.0.1, or set gateway.allow_insecure on a network "
            "where all are trusted"
        )
    if config.tls_cert is None:
        raise ConfigurationError(
            f"gateway.host {config.host}: API keys would travel in clear; set gateway.tls_cert and "
            "gateway.tls_key, or gateway.allow_insecure behind a proxy that ends TLS"
        )

"""The address to tell others of a socket that is bound to all addresses."""

from __future__ import annotations

import socket

WILDCARDS = ("0.0.0.0", "*", "[::]", "::")  # noqa: S104 - told apart, not bound


def reachable(endpoint: str, advertise_host: str | None) -> str:
    """`endpoint` (host:port, with or without a scheme) as others reach it: with `advertise_host` in
    place of a wildcard, or with this host's own address if that is None."""
    scheme, separator, address = endpoint.rpartition("://")
    host, colon, port = address.rpartition(":")
    if host not in WILDCARDS:
        return endpoint
    return f"{scheme}{separator}{advertise_host or own_address()}{colon}{port}"


def own_address() -> str:
    """The address that this host's route to others has; loopback where it has none.

    No packet is sent: connecting a datagram socket only chooses its address.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # documentation range: nobody has it
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"

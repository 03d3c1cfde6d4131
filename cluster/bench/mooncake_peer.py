"""Our side of `mooncake_driver`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.bench import mooncake_driver
from cluster.bench.driven_peer import DrivenPeer, driven_peer

MooncakePeer = DrivenPeer
"""Commands of `mooncake_driver.Peer`."""


@contextmanager
def mooncake_peer(python: Path) -> Iterator[MooncakePeer]:
    """Mooncake Store in the environment of `python`: its master, a process that stores, a client.

    Raises ConfigurationError if it does not start.
    """
    with driven_peer("Mooncake", python, Path(mooncake_driver.__file__)) as peer:
        yield peer

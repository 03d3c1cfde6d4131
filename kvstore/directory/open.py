"""Which `ClusterView` the settings of a node ask for."""

from __future__ import annotations

from collections.abc import Sequence

from kvstore.core.errors import ConfigurationError
from kvstore.directory.base import ClusterView
from kvstore.directory.null import NullView
from kvstore.directory.peers import Describe, PeerEventsView
from kvstore.directory.redis_view import RedisView
from kvstore.events.sockets import Secure


def open_view(
    directory: str,
    peers: Sequence[str],
    *,
    describe: Describe,
    namespace: str = "kvstore",
    secure: Secure | None = None,
) -> ClusterView:
    """The view of a node, not started.

    `directory` is the URL of a Redis; without one, the nodes at the endpoints `peers` are followed;
    without either the node is alone. `describe` asks a peer who it is. `namespace` keeps clusters
    apart that share a Redis. `secure` is applied to the sockets that follow peers. Raises
    ConfigurationError for an address that cannot be one, and for both at once.
    """
    if directory and peers:
        raise ConfigurationError(
            "node.directory and node.peers are both set; nodes in a Redis directory find each"
            " other: leave node.peers empty"
        )
    if directory:
        return RedisView(directory, namespace=namespace)
    if peers:
        return PeerEventsView(peers, describe, secure=secure)
    return NullView()

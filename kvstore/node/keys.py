"""The keys of a node's servers, and whether they suffice for where it listens."""

from __future__ import annotations

from kvstore.node.config import NodeConfig
from kvstore.transports.security.exposure import check_grpc, check_zmq
from kvstore.transports.security.keys import ServerKeys, load_server_keys


def server_keys(config: NodeConfig) -> ServerKeys:
    """Reads the files. Raises ConfigurationError that names the setting to change."""
    keys = load_server_keys(config.security, "node.security")
    insecure = config.allow_insecure
    check_grpc("node.grpc_address", config.grpc_address, keys, allow_insecure=insecure)
    for name in ("zmq_endpoint", "bulk_endpoint", "event_endpoint", "replay_endpoint"):
        endpoint = getattr(config, name)
        check_zmq(f"node.{name}", endpoint, keys, allow_insecure=insecure)
    return keys

"""The keys of a worker's servers, and whether they suffice for where it listens."""

from __future__ import annotations

from kvstore.transports.security.exposure import check_grpc, check_zmq
from kvstore.transports.security.keys import ServerKeys, load_server_keys
from model_runner.config import WorkerConfig


def server_keys(config: WorkerConfig) -> ServerKeys:
    """Reads the files. Raises ConfigurationError that names the setting to change."""
    keys = load_server_keys(config.security)
    insecure = config.allow_insecure
    check_grpc("grpc_address", config.grpc_address, keys, allow_insecure=insecure)
    check_zmq("event_endpoint", config.event_endpoint, keys, allow_insecure=insecure)
    check_zmq("replay_endpoint", config.replay_endpoint, keys, allow_insecure=insecure)
    return keys

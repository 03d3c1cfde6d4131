"""Which channel an endpoint asks for."""

from __future__ import annotations

from kvstore.core.errors import ConfigurationError
from kvstore.transports.base import BulkChannel, Channel
from kvstore.transports.grpc.bulk import GrpcBulkChannel
from kvstore.transports.grpc.channel import GrpcChannel
from kvstore.transports.security.keys import NO_CLIENT_KEYS, ClientKeys
from kvstore.transports.zmq.bulk_channel import ZmqBulkChannel
from kvstore.transports.zmq.channel import ZmqChannel

NODE_SERVICE = "kvstore.wire.v1.NodeService"


def open_channel(endpoint: str, keys: ClientKeys = NO_CLIENT_KEYS) -> Channel:
    """`tcp://host:port` and `ipc:///path` are ZeroMQ, `grpc://host:port` is gRPC."""
    scheme, _, address = endpoint.partition("://")
    if scheme in ("tcp", "ipc") and address:
        return ZmqChannel(endpoint, keys=keys)
    if scheme == "grpc" and address:
        return GrpcChannel(address, NODE_SERVICE, keys=keys)
    raise ConfigurationError(
        f"cannot use endpoint {endpoint!r}: give tcp://host:port, ipc:///path or grpc://host:port"
    )


async def open_bulk_channel(
    endpoint: str,
    bulk_port: int,
    grpc_port: int,
    probe_s: float,
    keys: ClientKeys = NO_CLIENT_KEYS,
) -> BulkChannel:
    """The fastest way for bytes to the node that listens at `endpoint`: ZeroMQ if that can be
    reached within `probe_s`, else gRPC. Raises ConfigurationError if there is none.

    A client that came by gRPC stays there: perhaps nothing but HTTP/2 passes.
    """
    scheme, _, address = endpoint.partition("://")
    if scheme == "grpc":
        return GrpcBulkChannel(GrpcChannel(address, NODE_SERVICE, keys=keys))
    host = address.rpartition(":")[0] if scheme == "tcp" else "127.0.0.1"
    if bulk_port and (zmq_channel := await _probe(f"tcp://{host}:{bulk_port}", probe_s, keys)):
        return zmq_channel
    if not grpc_port:
        raise ConfigurationError(
            f"{endpoint}: its arena cannot be mapped from here, and it serves bytes neither by "
            "ZeroMQ nor by gRPC; run the client on the node's host, as the node's user"
        )
    return GrpcBulkChannel(GrpcChannel(f"{host}:{grpc_port}", NODE_SERVICE, keys=keys))


async def _probe(endpoint: str, probe_s: float, keys: ClientKeys) -> ZmqBulkChannel | None:
    channel = ZmqBulkChannel(endpoint, secure=keys.secure)
    reached = False
    try:
        reached = await channel.wait_connected(probe_s)
    finally:
        if not reached:
            await channel.close()
    return channel if reached else None

"""Which channel an endpoint asks for."""

from __future__ import annotations

from kvstore.core.errors import ConfigurationError
from kvstore.transports.base import Channel
from kvstore.transports.grpc.channel import GrpcChannel
from kvstore.transports.zmq.channel import ZmqChannel

NODE_SERVICE = "kvstore.wire.v1.NodeService"


def open_channel(endpoint: str) -> Channel:
    """`tcp://host:port` and `ipc:///path` are ZeroMQ, `grpc://host:port` is gRPC."""
    scheme, _, address = endpoint.partition("://")
    if scheme in ("tcp", "ipc") and address:
        return ZmqChannel(endpoint)
    if scheme == "grpc" and address:
        return GrpcChannel(address, NODE_SERVICE)
    raise ConfigurationError(
        f"cannot use endpoint {endpoint!r}: give tcp://host:port, ipc:///path or grpc://host:port"
    )


def open_bulk_channel(endpoint: str, grpc_port: int) -> GrpcChannel:
    """The gRPC side of the node that listens at `endpoint`, for its streams of bytes."""
    scheme, _, address = endpoint.partition("://")
    if scheme == "grpc":
        return GrpcChannel(address, NODE_SERVICE)
    if not grpc_port:
        raise ConfigurationError(
            f"{endpoint}: its arena cannot be mapped from here, and it serves no gRPC; run the "
            "client on the node's host, as the node's user"
        )
    host = address.rpartition(":")[0] if scheme == "tcp" else "127.0.0.1"
    return GrpcChannel(f"{host}:{grpc_port}", NODE_SERVICE)

"""`NodeRecord` on the wire and back."""

from __future__ import annotations

from google.protobuf.message import DecodeError

from kvstore.core.errors import ProtocolError
from kvstore.core.ids import NodeId
from kvstore.directory.base import NodeRecord
from kvstore.wire.v1 import node_pb2


def to_wire(record: NodeRecord) -> node_pb2.NodeRecord:
    return node_pb2.NodeRecord(
        node_id=record.node_id,
        boot_id=record.boot_id,
        host_id=record.host_id,
        zmq_endpoint=record.zmq_endpoint,
        grpc_address=record.grpc_address,
        event_endpoint=record.event_endpoint,
        replay_endpoint=record.replay_endpoint,
    )


def from_wire(message: node_pb2.NodeRecord) -> NodeRecord:
    """Raises ProtocolError for a record that names no node."""
    if not message.node_id or not message.boot_id:
        raise ProtocolError("a node record without node id or boot id; run one version everywhere")
    return NodeRecord(
        NodeId(message.node_id),
        message.boot_id,
        message.host_id,
        message.zmq_endpoint,
        message.grpc_address,
        message.event_endpoint,
        message.replay_endpoint,
    )


def parse(packed: bytes) -> NodeRecord:
    """Raises ProtocolError."""
    try:
        return from_wire(node_pb2.NodeRecord.FromString(packed))
    except DecodeError as error:
        raise ProtocolError(f"{len(packed)} bytes are no node record") from error

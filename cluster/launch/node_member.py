"""A store node as a member of a cluster."""

from __future__ import annotations

from cluster.launch.members import Member
from cluster.wire.v1 import conductor_pb2 as pb
from kvstore.node.config import NodeConfig
from kvstore.node.daemon import Node


class NodeMember(Member):
    def __init__(self, config: NodeConfig) -> None:
        self._node = Node(config)
        self._config = config
        super().__init__(
            self._node, config.conductor, self._describe_node, pb.Load, config.credentials
        )

    @property
    def addresses(self) -> dict[str, str]:
        return {"zmq_endpoint": self._node.zmq_endpoint, **super().addresses}

    def _describe_node(self) -> pb.Member:
        return pb.Member(
            member_id=self._config.node_id,
            role=pb.ROLE_NODE,
            grpc_address=self._node.grpc_address,
            event_endpoint=self._node.event_endpoint,
            replay_endpoint=self._node.replay_endpoint,
            node_id=self._config.node_id,
        )

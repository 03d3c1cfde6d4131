"""Both ways for bytes run one suite."""

from __future__ import annotations

from kvstore.node.daemon import Node
from kvstore.testing.bulk_conformance import BulkConformance
from kvstore.testing.node_process import NodeProcess
from kvstore.transports.base import BulkChannel
from kvstore.transports.grpc.bulk import GrpcBulkChannel
from kvstore.transports.grpc.channel import GrpcChannel
from kvstore.transports.zmq.bulk_channel import ZmqBulkChannel


class TestZmqBulk(BulkConformance):
    setting = "bulk_endpoint"
    scheme = "tcp://"

    def address(self, node: Node | NodeProcess) -> str:
        return node.bulk_endpoint

    def make_channel(self, address: str) -> BulkChannel:
        return ZmqBulkChannel(address)


class TestGrpcBulk(BulkConformance):
    setting = "grpc_address"
    scheme = ""

    def address(self, node: Node | NodeProcess) -> str:
        return node.grpc_address

    def make_channel(self, address: str) -> BulkChannel:
        return GrpcBulkChannel(GrpcChannel(address, "kvstore.wire.v1.NodeService"))

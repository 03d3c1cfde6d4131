"""A node without a store: it says who it is, publishes what it is told to hold, and has a view."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.message import Message

from kvstore.core.ids import BlockHash, BlockKeys, LayoutFingerprint, NodeId
from kvstore.directory.base import ClusterView, NodeRecord
from kvstore.directory.records import to_wire
from kvstore.events.publisher import EventPublisher
from kvstore.tiers.base import TierKind
from kvstore.transports.zmq.server import ZmqServer
from kvstore.wire.v1 import node_pb2

SERVICE = node_pb2.DESCRIPTOR.services_by_name["NodeService"]
ANY = "tcp://127.0.0.1:0"
LAYOUT = LayoutFingerprint(b"l" * 16)


class FakeNode:
    """`start` → `stop`, or `die`: without a word to anybody. Serves `Describe` at `endpoint`."""

    def __init__(self, name: str, boot_id: int, endpoint: str, view: ClusterView) -> None:
        self.name = name
        self.boot_id = boot_id
        self.view = view
        self._endpoint = endpoint
        self._held: dict[TierKind, dict[BlockHash, None]] = {}
        self._publisher = EventPublisher(name, boot_id, ANY, ANY, self.inventory)
        self._server = ZmqServer(SERVICE, {"Describe": self._describe}, endpoint)

    async def start(self) -> None:
        await self._publisher.start()
        await self._server.start()
        await self.view.start(self.record, self.inventory)

    async def stop(self) -> None:
        """Idempotent."""
        await self.view.stop()
        await self.die()

    async def die(self) -> None:
        """Its view goes on: whoever tests cuts it off. Idempotent."""
        await self._server.stop()
        await self._publisher.stop()

    @property
    def record(self) -> NodeRecord:
        return NodeRecord(
            NodeId(self.name),
            self.boot_id,
            "this host",
            self._endpoint,
            "127.0.0.1:1",
            self._publisher.event_endpoint,
            self._publisher.replay_endpoint,
        )

    def stored(self, tier: TierKind, keys: BlockKeys) -> None:
        self._held.setdefault(tier, {}).update(dict.fromkeys(keys.hashes))
        self._publisher.stored(tier, keys)
        self.view.sink.stored(tier, keys)

    def removed(self, tier: TierKind, keys: BlockKeys) -> None:
        for block_hash in keys.hashes:
            self._held.get(tier, {}).pop(block_hash, None)
        self._publisher.removed(tier, keys)
        self.view.sink.removed(tier, keys)

    def cleared(self, tier: TierKind) -> None:
        self._held.pop(tier, None)
        self._publisher.cleared(tier)
        self.view.sink.cleared(tier)

    def inventory(self) -> Sequence[tuple[TierKind, BlockKeys]]:
        return [(tier, BlockKeys(LAYOUT, list(held))) for tier, held in self._held.items()]

    async def _describe(self, request: Message) -> Message:
        return node_pb2.DescribeResponse(node=to_wire(self.record))

"""The view of a node that is alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kvstore.core.ids import BlockKeys, NodeId
from kvstore.directory.base import NodeRecord, Replica
from kvstore.events.base import EventSink, Inventory
from kvstore.events.null import NullEventSink


class NullView:
    """Implements `ClusterView`: there is nobody else."""

    def __init__(self) -> None:
        self.sink: EventSink = NullEventSink()

    async def start(self, own: NodeRecord, inventory: Inventory) -> None:
        pass

    async def stop(self) -> None:
        pass

    def nodes(self) -> Mapping[NodeId, NodeRecord]:
        return {}

    async def locate(self, keys: BlockKeys, *, deadline_s: float) -> list[Sequence[Replica]]:
        return [()] * len(keys)

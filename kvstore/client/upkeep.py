"""Verbs about blocks that are in the store: how long they stay, and what the node tells."""

from __future__ import annotations

from collections.abc import Sequence

from kvstore.client.blocks import Prefetched
from kvstore.client.connection import Connection
from kvstore.client.deadline import Deadline
from kvstore.client.messages import keys_message, wait_ms
from kvstore.client.places import Places
from kvstore.client.releases import Releases
from kvstore.client.retention import Retention, retention_messages
from kvstore.core.errors import InvalidArgumentError
from kvstore.core.ids import BlockKeys
from kvstore.directory.base import NodeRecord
from kvstore.directory.records import from_wire
from kvstore.tiers.base import MissReason
from kvstore.wire.v1 import node_pb2


class Upkeep:
    """Part of `kvstore.client.aio.Client`; see the protocol."""

    _connection: Connection
    _releases: Releases
    _places: Places

    async def prefetch(
        self, keys: BlockKeys, *, local: bool = False, deadline_s: float = 1.0
    ) -> Prefetched:
        request = node_pb2.PrefetchRequest(keys=keys_message(keys), local=local)
        response, _ = await self._connection.call(
            "Prefetch", request, node_pb2.PrefetchResponse, Deadline(deadline_s)
        )
        return Prefetched(response.num_resident, response.num_started)

    async def pin(
        self, keys: BlockKeys, *, ttl_s: float | None, deadline_s: float = 1.0
    ) -> dict[int, MissReason]:
        if ttl_s is not None and ttl_s <= 0:
            raise InvalidArgumentError(
                f"ttl_s must be positive, or None for a hard pin; got {ttl_s:g}"
            )
        request = node_pb2.PinRequest(
            keys=keys_message(keys),
            ttl_ms=0 if ttl_s is None else max(int(ttl_s * 1000), 1),
            wait_ms=wait_ms(deadline_s),
        )
        response, _ = await self._connection.call(
            "Pin", request, node_pb2.PinResponse, Deadline(deadline_s)
        )
        return {i: MissReason(miss) for i, miss in enumerate(response.miss_reasons) if miss}

    async def unpin(self, keys: BlockKeys, *, deadline_s: float = 1.0) -> int:
        request = node_pb2.UnpinRequest(keys=keys_message(keys))
        response, _ = await self._connection.call(
            "Unpin", request, node_pb2.UnpinResponse, Deadline(deadline_s)
        )
        return response.num_unpinned

    async def retain(
        self, keys: BlockKeys, retention: Sequence[Retention], *, deadline_s: float = 1.0
    ) -> int:
        request = node_pb2.RetainRequest(
            keys=keys_message(keys), retention=retention_messages(retention)
        )
        response, _ = await self._connection.call(
            "Retain", request, node_pb2.RetainResponse, Deadline(deadline_s)
        )
        return response.num_retained

    async def remove(self, keys: BlockKeys, *, deadline_s: float = 1.0) -> int:
        await self._releases.sent()
        self._places.forget(keys)
        request = node_pb2.RemoveRequest(keys=keys_message(keys))
        response, _ = await self._connection.call(
            "Remove", request, node_pb2.RemoveResponse, Deadline(deadline_s)
        )
        return response.num_removed

    async def clear(self, *, deadline_s: float = 5.0) -> int:
        await self._releases.sent()
        self._places.clear()
        response, _ = await self._connection.call(
            "Clear", node_pb2.ClearRequest(), node_pb2.ClearResponse, Deadline(deadline_s)
        )
        return response.num_removed

    async def statistics(self, *, deadline_s: float = 1.0) -> node_pb2.StatisticsResponse:
        await self._releases.arrived()
        return await self._connection.channel.call(
            "Statistics",
            node_pb2.StatisticsRequest(),
            node_pb2.StatisticsResponse,
            deadline_s=deadline_s,
        )

    async def describe(self, *, deadline_s: float = 1.0) -> NodeRecord:
        response = await self._connection.channel.call(
            "Describe",
            node_pb2.DescribeRequest(),
            node_pb2.DescribeResponse,
            deadline_s=deadline_s,
        )
        return from_wire(response.node)

"""The part of NodeService that decides about blocks that are here: pin, retain, remove."""

from __future__ import annotations

from typing import cast

from kvstore.core.ids import BlockKeys, SessionId
from kvstore.node import validation
from kvstore.node.manager import BlockManager
from kvstore.transports.base import Handler
from kvstore.wire.v1 import block_pb2, node_pb2


class KeepingService:
    """Handlers by name, for any transport. Lives on the node's event loop."""

    def __init__(self, manager: BlockManager) -> None:
        self._manager = manager
        self._keeper = manager.keeper

    def handlers(self) -> dict[str, Handler]:
        methods = {
            "Pin": self._pin,
            "Unpin": self._unpin,
            "Retain": self._retain,
            "Remove": self._remove,
            "Clear": self._clear,
        }
        return {name: cast(Handler, method) for name, method in methods.items()}

    async def _pin(self, request: node_pb2.PinRequest) -> node_pb2.PinResponse:
        misses = await self._keeper.pin(
            SessionId(request.session_id),
            self._keys(request.session_id, request.keys),
            validation.check_duration_s("ttl_ms", request.ttl_ms),
            validation.check_wait_s(request.wait_ms),
        )
        return node_pb2.PinResponse(miss_reasons=bytes(miss or 0 for miss in misses))

    async def _unpin(self, request: node_pb2.UnpinRequest) -> node_pb2.UnpinResponse:
        keys = self._keys(request.session_id, request.keys)
        num_unpinned = self._keeper.unpin(SessionId(request.session_id), keys)
        return node_pb2.UnpinResponse(num_unpinned=num_unpinned)

    async def _retain(self, request: node_pb2.RetainRequest) -> node_pb2.RetainResponse:
        keys = self._keys(request.session_id, request.keys)
        ranges = validation.check_retention(request.retention, len(keys))
        num_retained = self._keeper.retain(SessionId(request.session_id), keys, ranges)
        return node_pb2.RetainResponse(num_retained=num_retained)

    async def _remove(self, request: node_pb2.RemoveRequest) -> node_pb2.RemoveResponse:
        keys = self._keys(request.session_id, request.keys)
        num_removed = await self._keeper.remove(SessionId(request.session_id), keys)
        return node_pb2.RemoveResponse(num_removed=num_removed)

    async def _clear(self, request: node_pb2.ClearRequest) -> node_pb2.ClearResponse:
        num_removed = await self._keeper.clear(SessionId(request.session_id))
        return node_pb2.ClearResponse(num_removed=num_removed)

    def _keys(self, session_id: int, keys: block_pb2.BlockKeys) -> BlockKeys:
        return self._manager.fold(SessionId(session_id), validation.check_keys(keys))

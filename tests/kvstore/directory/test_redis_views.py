"""Views made of a Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import count

import pytest

from kvstore.directory.base import ClusterView
from kvstore.directory.redis_view import RedisView
from kvstore.testing.redis_server import RedisServer
from kvstore.testing.tcp_proxy import TcpProxy
from kvstore.testing.view_conformance import ViewConformance, Views

_numbers = count()


class _RedisViews:
    """Each node has a wire of its own to Redis."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self._namespace = f"test-{next(_numbers)}"
        self.wires: dict[str, TcpProxy] = {}

    async def open(self, name: str, endpoints: dict[str, str]) -> ClusterView:
        await self.cut_off(name)
        self.wires[name] = wire = TcpProxy(self._server.port)
        await wire.start()
        return RedisView(f"redis://127.0.0.1:{wire.port}", namespace=self._namespace)

    async def cut_off(self, name: str) -> None:
        if name in self.wires:
            await self.wires[name].stop()

    async def close(self) -> None:
        for wire in self.wires.values():
            await wire.stop()


class TestRedisView(ViewConformance):
    @pytest.fixture
    async def views(self, shared_redis: RedisServer) -> AsyncIterator[Views]:
        views = _RedisViews(shared_redis)
        yield views
        await views.close()

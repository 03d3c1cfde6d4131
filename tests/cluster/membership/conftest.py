"""A conductor over real gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from cluster.conductor.config import ConductorConfig
from cluster.membership.client import ConductorClient
from cluster.membership.server import ConductorServer


@pytest.fixture
async def server() -> AsyncIterator[ConductorServer]:
    conductor = ConductorServer(ConductorConfig(member_ttl_ms=2_000))
    await conductor.start()
    yield conductor
    await conductor.stop()


@pytest.fixture
async def client(server: ConductorServer) -> AsyncIterator[ConductorClient]:
    async with ConductorClient(server.address) as connected:
        yield connected


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as exits:
        yield exits

"""A redis-server for each test module, emptied for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kvstore.testing.redis_server import PROGRAM, RedisServer


@pytest.fixture(scope="module")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    if PROGRAM is None:
        pytest.skip("redis-server is missing: sudo apt-get install redis-server")
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server

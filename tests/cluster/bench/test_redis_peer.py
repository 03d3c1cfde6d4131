"""The Redis that ours is measured beside."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from cluster.bench.ceilings import random_blocks
from cluster.bench.redis_peer import redis_peer
from kvstore.core.errors import ConfigurationError

PROGRAM = shutil.which("redis-server")


@pytest.mark.skipif(PROGRAM is None, reason="redis-server is missing")
def test_blocks_are_put_and_got_and_nothing_is_left(tmp_path):
    with redis_peer(Path(PROGRAM), tmp_path) as peer:
        blocks = random_blocks(4, 1_000)
        peer.prepare(blocks)
        assert peer.put_s(3) > 0
        assert peer.get_s() > 0
        assert peer.latency_s(20) > 0
        stored = Redis(unix_socket_path=str(tmp_path / "redis.sock"))
        assert len(stored.keys()) == 12
        assert stored.get("0/2/3") == bytes(blocks[3])
        stored.mset({"0/2/3": b"other bytes"})
        with pytest.raises(AssertionError):
            peer.get_s()
        peer.clear()
        assert stored.keys() == []
        stored.close()
    with pytest.raises(RedisConnectionError):
        stored.ping()


def test_what_is_no_server_is_a_configuration_error(tmp_path):
    with (
        pytest.raises(ConfigurationError, match="redis-server"),
        redis_peer(Path("/bin/true"), tmp_path),
    ):
        pass

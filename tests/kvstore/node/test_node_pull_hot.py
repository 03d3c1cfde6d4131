"""Replicas stay where they are read: their bound, their decay, and what is kept on disk."""

from __future__ import annotations

from kvstore.node.pull.heat import HALF_LIFE_S
from kvstore.testing.clock import ManualClock
from kvstore.tiers.base import TierKind

from .cluster import Cluster, pair, put, read, until
from .conftest import BLOCK_BYTES, make_keys

HOST, DISK, REMOTE = TierKind.HOST, TierKind.DISK, TierKind.REMOTE
SMALL = {"host": 4 << 20, "replica_share": 0.25}
"""16 replicas of a block of 64 KiB."""


def use_clock(node):
    """Time of heat stands still from now on, until the test moves it."""
    clock = ManualClock()
    heat = node.store.manager._replication._space._heat
    assert not heat
    heat._clock = clock
    return clock


async def replica_bytes(client):
    return (await client.statistics()).replica_bytes


async def test_replicas_stay_within_their_bound_and_the_coldest_leave_first(tmp_path):
    async with pair(tmp_path, **SMALL) as (_, a, b, node_a, _):
        clock = use_clock(node_a)
        await put(b, make_keys(*range(32)))
        assert await read(a, make_keys(*range(16))) == [REMOTE] * 16
        clock.advance(1)
        assert await read(a, make_keys(*range(4))) == [HOST] * 4, "these are hotter now"
        assert await read(a, make_keys(*range(16, 24))) == [REMOTE] * 8
        assert await replica_bytes(a) == 16 * BLOCK_BYTES
        host = node_a.store._host
        assert all(key in host for key in make_keys(*range(4), *range(16, 24)))
        remote = {tier.tier: tier for tier in (await a.statistics()).tiers}[REMOTE]
        assert (remote.evictions, remote.capacity_bytes) == (8, 1 << 20)


async def test_a_block_that_is_never_read_again_leaves_and_a_hot_one_stays(tmp_path):
    async with pair(tmp_path, **SMALL) as (cluster, a, b, node_a, _):
        clock = use_clock(node_a)
        keys = make_keys("once", "often")
        await put(b, keys)
        assert await read(a, keys) == [REMOTE] * 2
        for _ in range(6):
            assert await read(a, keys[1:]) == [HOST]
        clock.advance(HALF_LIFE_S * 3.1)
        host = node_a.store._host
        once, often = keys
        await until(lambda: once not in host)
        assert often in host
        assert await replica_bytes(a) == BLOCK_BYTES
        assert [r.publisher for r in cluster.state.locate(keys)[0]] == ["b"], "announced"
        clock.advance(HALF_LIFE_S * 3)
        await until(lambda: often not in host)
        assert await replica_bytes(a) == 0


async def test_own_blocks_are_no_replicas_and_do_not_leave(tmp_path):
    async with pair(tmp_path, **SMALL) as (_, a, b, node_a, _):
        clock = use_clock(node_a)
        await put(a, make_keys(*range(20)))
        await put(b, make_keys("there"))
        await read(a, make_keys("there"))
        clock.advance(HALF_LIFE_S * 100)
        await until(lambda: not node_a.store.manager._replication._space)
        assert await read(a, make_keys(*range(20))) == [HOST] * 20


async def test_a_leased_replica_is_not_evicted_for_another(tmp_path):
    async with pair(tmp_path, **SMALL) as (_, a, b, node_a, _):
        use_clock(node_a)
        await put(b, make_keys(*range(32)))
        async with await a.acquire(make_keys(*range(16)), deadline_s=5) as lease:
            assert len(lease.found) == 16
            ends = await read(a, make_keys(*range(16, 20)))
            assert {end.name for end in ends} == {"NO_SPACE"}
            for block in lease.found:
                lease.verify(block)
        manager = node_a.store.manager
        await until(lambda: manager.statistics().leases == 0)
        assert await read(a, make_keys(*range(16, 20))) == [REMOTE] * 4


async def test_a_replica_that_others_evict_is_forgotten(tmp_path):
    async with pair(tmp_path, **SMALL) as (_, a, b, node_a, _):
        use_clock(node_a)
        await put(b, make_keys("replica"))
        assert await read(a, make_keys("replica")) == [REMOTE]
        for start in range(0, 90, 30):
            await put(a, make_keys(*range(start, start + 30)))
        assert await replica_bytes(a) == 0
        assert await read(a, make_keys("replica")) == [REMOTE]


async def test_a_replica_goes_to_disk_when_it_is_read_a_second_time(tmp_path):
    folder = tmp_path / "disk"
    async with pair(tmp_path, disk=32 << 20, disk_path=folder) as (_, a, b, node_a, _):
        keys = make_keys("once", "twice")
        await put(b, keys)
        assert await read(a, keys) == [REMOTE] * 2
        assert not any(key in node_a.store._disk for key in keys)
        assert await read(a, keys[1:]) == [HOST]
        disk = node_a.store._disk
        once, twice = keys
        await until(lambda: twice in disk)
        assert once not in disk


async def test_a_hot_prefix_ends_on_every_node_that_reads_it(tmp_path):
    async with Cluster(tmp_path) as cluster:
        clients = [await cluster.connect(await cluster.start(name)) for name in "abcd"]
        keys = make_keys(*range(6))
        await put(clients[0], keys)
        for client in clients[1:]:
            assert await read(client, keys) == [REMOTE] * 6
        assert {len(replicas) for replicas in cluster.state.locate(keys)} == {4}

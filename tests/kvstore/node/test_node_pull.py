"""Blocks that other nodes hold are read here: real nodes, by every way to each other."""

from __future__ import annotations

import asyncio

import pytest

from kvstore.tiers.base import MissReason, TierKind

from .cluster import WAYS, Cluster, pair, peer_statistics, put, read, until
from .conftest import make_keys

HOST, DISK, REMOTE = TierKind.HOST, TierKind.DISK, TierKind.REMOTE


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("length", [64 << 10, 3 << 20, 1000])
async def test_a_node_reads_what_another_wrote(tmp_path, way, length):
    async with pair(tmp_path, way, host=64 << 20) as (_, a, b, _, node_b):
        keys = make_keys(*range(4))
        await put(b, keys, length)
        assert await read(a, keys, length) == [REMOTE] * 4
        assert await read(a, keys, length) == [HOST] * 4, "they stay where they are read"
        statistics = await a.statistics()
        (peer,) = statistics.peers
        assert (peer.node_id, peer.transport, peer.breaker) == ("b", way, "closed")
        assert (peer.blocks_pulled, peer.bytes_pulled) == (4, 4 * length)
        assert peer.bytes_per_s > 0
        assert statistics.replica_bytes == 4 * length
        remote = {tier.tier: tier for tier in statistics.tiers}[REMOTE]
        assert (remote.hits, remote.blocks, remote.used_bytes) == (4, 4, 4 * length)
        manager = node_b.store.manager
        await until(lambda: manager.statistics().leases == 0)  # nothing is held at the peer


@pytest.mark.parametrize("way", WAYS)
async def test_many_blocks_come_in_several_batches(tmp_path, way, monkeypatch):
    monkeypatch.setattr("kvstore.node.pull.transfer.BATCH_BYTES", 256 << 10)
    async with pair(tmp_path, way) as (_, a, b, *_):
        keys = make_keys(*range(40))
        await put(b, keys)
        assert await read(a, keys) == [REMOTE] * 40


async def test_what_is_pulled_is_announced_and_pulled_from_there_in_turn(tmp_path):
    async with Cluster(tmp_path) as cluster:
        nodes = [await cluster.start(name) for name in "abc"]
        a, b, c = [await cluster.connect(node) for node in nodes]
        keys = make_keys(*range(3))
        await put(b, keys)
        assert await read(a, keys) == [REMOTE] * 3
        assert {r.publisher for r in cluster.state.locate(keys)[0]} == {"a", "b"}
        await nodes[1].stop()
        assert await read(c, keys) == [REMOTE] * 3
        assert (await peer_statistics(c)).keys() == {"a"}


async def test_readers_of_one_block_share_its_pull(tmp_path):
    async with pair(tmp_path) as (_, a, b, _, node_b):
        keys = make_keys(*range(8))
        await put(b, keys)
        reads = await asyncio.gather(*(read(a, keys) for _ in range(10)))
        assert {tier for tiers in reads for tier in tiers} == {REMOTE}
        assert (await peer_statistics(a))["b"].blocks_pulled == 8
        assert node_b.store.manager.statistics().tiers[0].hits == 8


async def test_a_read_takes_what_is_here_and_on_disk_and_elsewhere(tmp_path):
    folder = tmp_path / "disk"
    async with pair(tmp_path, disk=32 << 20, disk_path=folder) as (_, a, b, node_a, _):
        here, on_disk, there = make_keys("here"), make_keys("disk"), make_keys("there")
        await put(a, on_disk)
        host = node_a.store._host
        replicas = node_a.store.manager._replicas
        await until(lambda: all(key in node_a.store._disk for key in on_disk))
        replicas.lost(HOST, host.drop(on_disk))
        await put(a, here)
        await put(b, there)
        tiers = await read(a, make_keys("here", "disk", "never", "there"))
        assert tiers == [HOST, DISK, MissReason.NEVER_STORED, REMOTE]


async def test_what_the_disk_lost_comes_from_another_node(tmp_path):
    folder = tmp_path / "disk"
    async with pair(tmp_path, disk=32 << 20, disk_path=folder) as (_, a, b, node_a, _):
        keys = make_keys("corrupt", "fails", "fine")
        await put(a, keys)
        await put(b, keys[:2])
        store = node_a.store
        await until(lambda: all(key in store._disk for key in keys))
        store.manager._replicas.lost(HOST, store._host.drop(keys))
        load, (corrupt, fails, _) = store._disk.load, list(keys)

        def worse(wanted, into):
            ends = load(wanted, into)
            bad = {corrupt: MissReason.CORRUPT, fails: MissReason.FAILED}
            return [bad.get(key, end) for key, end in zip(wanted, ends, strict=True)]

        store._disk.load = worse
        assert await read(a, keys) == [REMOTE, REMOTE, DISK]


async def test_a_block_that_is_written_while_others_are_asked_for_it_is_found(tmp_path):
    async with pair(tmp_path) as (_, a, _, node_a, _):
        keys = make_keys("a")
        locate, gate = node_a._view.locate, asyncio.Event()

        async def slow(keys, *, deadline_s):
            await gate.wait()
            return await locate(keys, deadline_s=deadline_s)

        node_a._view.locate = slow
        reading = asyncio.create_task(read(a, keys))
        await until(lambda: a is not None and node_a.store.manager.statistics().sessions >= 1)
        await put(a, keys)
        gate.set()
        assert await reading == [HOST]


async def test_two_nodes_that_lack_a_block_do_not_ask_each_other_in_circles(tmp_path):
    async with pair(tmp_path) as (cluster, a, b, node_a, node_b):
        keys = make_keys("nowhere")
        cluster.announce("a", keys)
        cluster.announce("b", keys)
        reasons = await asyncio.gather(read(a, keys), read(b, keys))
        assert reasons == [[MissReason.EVICTED]] * 2, "the directory named it; it was gone"
        for node in (node_a, node_b):
            misses = node.store.manager.statistics().misses
            assert sum(misses.values()) == 2, "one read of its own, one of the peer; no more"


async def test_a_local_read_never_pulls(tmp_path):
    async with pair(tmp_path) as (_, _, b, node_a, _):
        keys = make_keys("a")
        await put(b, keys)
        manager = node_a.store.manager
        session = manager.open_session("test", None, [])
        acquired = await manager.acquire(session.id, keys, 1.0, local=True)
        assert acquired.tiers == [MissReason.NEVER_STORED]
        peer = manager.open_session("test", None, [], peer=True)
        acquired = await manager.acquire(peer.id, keys, 1.0)
        assert acquired.tiers == [MissReason.NEVER_STORED], "not even if it does not say so"


async def test_an_empty_view_costs_nothing_and_a_node_alone_misses(tmp_path):
    async with Cluster(tmp_path) as cluster:
        node = await cluster.start("a")
        client = await cluster.connect(node)
        assert await read(client, make_keys("a")) == [MissReason.NEVER_STORED]
        assert node._view.num_located == 0
        assert list((await client.statistics()).peers) == []


async def test_match_counts_the_blocks_of_others_and_names_their_nodes(tmp_path):
    async with Cluster(tmp_path) as cluster:
        nodes = [await cluster.start(name) for name in "abc"]
        a, b, c = [await cluster.connect(node) for node in nodes]
        await put(a, make_keys(0, 3))
        await put(b, make_keys(1, 2))
        await put(c, make_keys(4))
        manager = nodes[0].store.manager
        match = await manager.match_everywhere(make_keys(*range(6), 0))
        assert match.tiers == [HOST, REMOTE, REMOTE, HOST, REMOTE]
        assert match.nodes == ["b", "b", "c"]


async def test_prefetch_answers_at_once_and_the_blocks_come(tmp_path):
    async with pair(tmp_path) as (_, a, b, node_a, _):
        await put(b, make_keys(*range(4)))
        await put(a, make_keys("here"))
        manager = node_a.store.manager
        session = manager.open_session("test", None, [])
        keys = make_keys("here", "never", *range(4))
        prefetched = await manager.prefetch(session.id, keys)
        assert (prefetched.num_resident, prefetched.num_started) == (1, 4)
        host = node_a.store._host
        await until(lambda: all(key in host for key in make_keys(*range(4))))
        assert await read(a, make_keys(*range(4))) == [HOST] * 4


async def test_a_block_written_here_while_it_is_pulled_is_stored_once(tmp_path):
    async with pair(tmp_path) as (_, a, b, node_a, node_b):
        keys = make_keys("a")
        await put(b, keys)
        gate = asyncio.Event()
        acquire = node_b.store.manager._leases.acquire

        async def held(*args, **kwargs):
            await gate.wait()
            return await acquire(*args, **kwargs)

        node_b.store.manager._leases.acquire = held
        node_b.store.manager._leases.acquire_now = lambda *_: None
        reading = asyncio.create_task(read(a, keys))
        await until(lambda: node_a.store.manager._replication.puller._tasks)
        await put(a, keys)
        gate.set()
        assert await reading == [REMOTE], "it waited for the pull, which found it here"
        assert (await a.statistics()).replica_bytes == 0
        assert (await peer_statistics(a))["b"].blocks_pulled == 0


async def test_a_restarted_peer_is_found_in_its_new_life(tmp_path):
    async with pair(tmp_path) as (cluster, a, b, _, node_b):
        await put(b, make_keys("a"))
        assert await read(a, make_keys("a")) == [REMOTE]
        await node_b.stop()
        again = await cluster.start("b")
        client = await cluster.connect(again)
        await put(client, make_keys("b"))
        assert await read(a, make_keys("b")) == [REMOTE]
        assert (await peer_statistics(a))["b"].blocks_pulled == 1, "the record of the new life"


async def test_a_draining_node_gives_what_it_has_and_pulls_no_more(tmp_path):
    async with pair(tmp_path) as (_, a, b, _, node_b):
        await put(b, make_keys("warm", "a"))
        await put(a, make_keys("b"))
        assert await read(a, make_keys("warm")) == [REMOTE]
        await node_b.store.drain()
        assert await read(a, make_keys("a")) == [REMOTE]
        assert await read(b, make_keys("b")) == [MissReason.NEVER_STORED]

"""Whole nodes out of memory, out of disk, and with memory that changes by itself: misses with their
one reason, refused writes, and all well when the cause is gone."""

from __future__ import annotations

import asyncio

import pytest

from kvstore.client.aio import Client
from kvstore.tiers.base import MissReason, ReserveOutcome, TierKind

from .cluster import Cluster, put, read, until
from .conftest import BLOCK_BYTES, content, make_keys

HOST, DISK = TierKind.HOST, TierKind.DISK
HOST_BLOCKS = 32


async def start(cluster, **settings):
    node = await cluster.start("a", host=HOST_BLOCKS * BLOCK_BYTES, **settings)
    return node, await cluster.connect(node)


async def write(client, keys):
    """How many were stored."""
    return len(await client.put(keys, [memoryview(content(h)) for h in keys.hashes]))


async def until_on_disk(client, count):
    async with asyncio.timeout(20):
        while (await client.statistics()).tiers[1].blocks < count:  # noqa: ASYNC110 - the node's
            await asyncio.sleep(0.01)


async def test_an_arena_full_of_leased_and_pinned_blocks_refuses_writes_and_reads_on(tmp_path):
    async with Cluster(tmp_path) as cluster:
        _, client = await start(cluster, disk=32 << 20, disk_path=tmp_path / "disk")
        on_disk, keys = make_keys("on disk"), make_keys(*range(2 * HOST_BLOCKS))
        await put(client, on_disk)
        await until_on_disk(client, 1)
        leases = []
        while await write(client, key := keys[len(leases) : len(leases) + 1]):
            leases.append(await client.acquire(key))
        held = keys[: len(leases)]
        assert HOST_BLOCKS / 2 < len(held) <= HOST_BLOCKS
        async with await client.reserve(make_keys("more"), BLOCK_BYTES) as reservation:
            assert reservation.outcomes == [ReserveOutcome.NO_SPACE]
        assert await read(client, on_disk) == [MissReason.NO_SPACE]
        assert await read(client, held) == [HOST] * len(held)
        assert await client.pin(held[:4], ttl_s=None) == {}
        for lease in leases:
            await lease.release()
        async with asyncio.timeout(20):
            # The node hears of releases a little later.
            while await write(client, keys[len(held) :]) < 16:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            # And has to write to disk what is in the way.
            while (ends := await read(client, on_disk)) == [MissReason.NO_SPACE]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert (await client.match(held[:4])).tiers == [HOST] * 4
        assert DISK in (await client.match(held)).tiers
        assert ends == [DISK]


async def test_a_disk_without_space_costs_disk_copies_only(tmp_path, small_filesystem):
    async with Cluster(tmp_path) as cluster:
        node, client = await start(cluster, disk=32 << 20, disk_path=small_filesystem)
        keys = make_keys(*range(40 * HOST_BLOCKS))
        async with asyncio.timeout(20):
            written = 0
            while written < 3 * HOST_BLOCKS or not node.store._disk.statistics().errors:
                written += await write(client, keys[written : written + 8])
        keys = keys[:written]
        await until(lambda: node.store.manager._demotion.queue.idle)
        assert 0 < (await client.statistics()).tiers[1].blocks < len(keys)
        ends = [end for i in range(0, len(keys), 8) for end in await read(client, keys[i : i + 8])]
        assert set(ends) == {HOST, DISK, MissReason.EVICTED}
        kept = {info.key for info in node.store._disk.inventory()}
    async with Cluster(tmp_path) as cluster:
        _, client = await start(cluster, disk=32 << 20, disk_path=small_filesystem)
        there = [key in kept for key in keys]
        ends = [end for i in range(0, len(keys), 8) for end in await read(client, keys[i : i + 8])]
        assert [isinstance(end, TierKind) for end in ends] == there


@pytest.mark.parametrize("shared_memory", [True, False])
async def test_bits_that_flip_in_the_arena_are_counted_and_the_block_is_read_from_disk(
    tmp_path, shared_memory
):
    async with Cluster(tmp_path) as cluster:
        node, client = await start(cluster, disk=32 << 20, disk_path=tmp_path / "disk")
        keys = make_keys(*range(4))
        await put(client, keys)
        await until_on_disk(client, 4)
        flip(node, content(keys.hashes[2]))
        into = [memoryview(bytearray(BLOCK_BYTES)) for _ in keys.hashes]
        async with await Client.connect(
            node.zmq_endpoint, verify="always", shared_memory=shared_memory
        ) as reader:
            assert await reader.get(keys, into) == {2: MissReason.CORRUPT}
            assert (await reader.match(keys)).tiers == [HOST, HOST, DISK, HOST]
            assert (await reader.statistics()).tiers[0].corruptions == 1
            async with asyncio.timeout(20):
                while await reader.get(keys, into):  # until the first lease on it is released
                    pass
            assert [bytes(block) for block in into] == [content(h) for h in keys.hashes]


def flip(node, block):
    """One bit of that block, in the file that the node has mapped."""
    with open(node.store.facts.arena_path, "r+b") as file:
        at = file.read().index(block) + len(block) // 2
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))

"""Reading again what was read before: no word with the node, and never wrong bytes."""

from __future__ import annotations

import asyncio

import pytest

from kvstore.client import places
from kvstore.client.verification import effective
from kvstore.core.errors import InvalidArgumentError
from kvstore.tiers.base import MissReason

from .conftest import MAPPED, buffers, contents, make_keys, until

MIB = 1 << 20


class Calls:
    """Counts what a client asks its node for."""

    def __init__(self, client, monkeypatch):
        self.methods = []
        connection = client._connection
        inner = connection.call

        async def call(method, *arguments):
            self.methods.append(method)
            return await inner(method, *arguments)

        monkeypatch.setattr(connection, "call", call)


@pytest.mark.parametrize("verify", ["transfers", "always"])
@pytest.mark.parametrize("way", MAPPED)
async def test_a_second_read_asks_nobody(make_node, connect, monkeypatch, way, verify):
    monkeypatch.setattr(places, "GATHER_S", 60)
    node = await make_node()
    async with connect(node, way, verify=verify) as client:
        keys = make_keys(*range(4))
        data = contents(keys, 5_000)
        await client.put(keys, data)
        calls = Calls(client, monkeypatch)
        for _ in range(3):
            into = buffers(4, 5_000)
            assert await client.get(keys, into) == {}
            assert into == data
        assert calls.methods == ["Acquire"]
        assert await client.get(make_keys(0, "unknown"), buffers(2, 5_000)) == {
            1: MissReason.NEVER_STORED
        }


async def test_memory_that_has_another_block_is_not_read(make_node, connect):
    node = await make_node(host=4 * MIB)
    async with connect(node) as client:
        keys = make_keys("a")
        await client.put(keys, contents(keys, MIB))
        assert await client.get(keys, buffers(1, MIB)) == {}
        for i in range(8):
            others = make_keys(i)
            await client.put(others, contents(others, MIB))
        assert await client.get(keys, buffers(1, MIB)) == {0: MissReason.EVICTED}
        await client.put(keys, contents(keys, MIB))
        into = buffers(1, MIB)
        assert await client.get(keys, into) == {}
        assert into == contents(keys, MIB)


async def test_readers_and_a_writer_in_a_small_store_never_see_wrong_bytes(make_node, connect):
    node = await make_node(host=4 * MIB)
    async with connect(node) as writer, connect(node) as reader:
        hits = 0
        for turn in range(60):
            keys = make_keys(*((turn * 7 + i) % 24 for i in range(2)))
            data = contents(keys, MIB // 2)
            await writer.put(keys, data, deadline_s=10)
            for _ in range(2):
                into = buffers(2, MIB // 2)
                misses = await reader.get(keys, into, deadline_s=10)
                hits += 2 - len(misses)
                assert [into[i] for i in range(2) if i not in misses] == [
                    data[i] for i in range(2) if i not in misses
                ]
        assert hits > 60


async def test_removed_blocks_are_not_read_again(make_node, connect, monkeypatch):
    monkeypatch.setattr(places, "GATHER_S", 60)
    node = await make_node()
    async with connect(node) as client, connect(node) as other:
        keys = make_keys("a", "b", "c")
        await client.put(keys, contents(keys, 1000))
        for _ in range(2):
            assert await client.get(keys, buffers(3, 1000)) == {}
        await client.remove(keys[:1])
        assert list(await client.get(keys, buffers(3, 1000))) == [0]
        assert (await client.statistics()).leases == 0, "nobody has a lease on them"
        await other.remove(keys[1:2])
        assert list(await client.get(keys[1:2], buffers(1, 1000))) == [0]
        assert await client.get(keys[2:], buffers(1, 1000)) == {}
        await client.clear()
        assert len(await client.get(keys, buffers(3, 1000))) == 3


async def test_a_flipped_bit_is_seen_again_where_everything_is_checked(make_node, connect):
    node = await make_node()
    async with connect(node, verify="always") as client:
        keys = make_keys("a")
        await client.put(keys, contents(keys, 1000))
        assert await client.get(keys, buffers(1, 1000)) == {}
        host = node.store._host
        host.view(host.acquire(list(keys))[0].slot)[7] ^= 1
        host.release(list(keys))
        assert await client.get(keys, buffers(1, 1000)) == {0: MissReason.CORRUPT}
        assert len(await client.match(keys)) == 0, "the node was told"


async def test_the_node_hears_what_is_used(make_node, connect):
    node = await make_node()
    async with connect(node) as client:
        keys = make_keys("a")
        await client.put(keys, contents(keys, 1000))
        for _ in range(3):
            assert await client.get(keys, buffers(1, 1000)) == {}

        async def told():
            return (await client.statistics()).tiers[0].hits >= 2

        await until(told, "the first read, and the two others as one")


async def test_what_is_remembered_is_bounded(make_node, connect, monkeypatch):
    monkeypatch.setattr(places, "MAX_PLACES", 3)
    node = await make_node()
    async with connect(node) as client:
        keys = make_keys(*range(5))
        await client.put(keys, contents(keys, 100))
        for i in range(5):
            await client.get(keys[i : i + 1], buffers(1, 100))
        assert len(client._places._places) == 3
        calls = Calls(client, monkeypatch)
        assert await client.get(keys[4:], buffers(1, 100)) == {}
        assert calls.methods == []
        assert await client.get(keys[:1], buffers(1, 100)) == {}
        assert calls.methods[0] == "Acquire"


async def test_places_of_a_node_that_was_restarted_are_forgotten(make_node, connect):
    node = await make_node()
    endpoint = node.zmq_endpoint
    async with connect(node) as client:
        keys = make_keys("a")
        await client.put(keys, contents(keys, 1000))
        assert await client.get(keys, buffers(1, 1000)) == {}
        await node.stop()
        await make_node(zmq_endpoint=endpoint)

        async def forgotten():
            misses = await client.get(keys, buffers(1, 1000), deadline_s=10)
            return misses == {0: MissReason.NEVER_STORED}

        await until(forgotten, "the client saw that the node went away")


async def test_releases_are_gathered_and_free_the_memory_for_the_next_write(make_node, connect):
    node = await make_node(host=4 * MIB)
    async with connect(node) as client:
        for i in range(12):
            keys = make_keys(i)
            assert await client.put(keys, contents(keys, 3 * MIB)) == [0]
            async with await client.acquire(keys) as lease:
                assert len(lease.found) == 1
        assert (await client.statistics()).leases == 0


def test_machines_that_reorder_stores_check_everything():
    assert effective("transfers", "x86_64") == "transfers"
    assert effective("always", "x86_64") == "always"
    assert effective("transfers", "aarch64") == "always"
    with pytest.raises(InvalidArgumentError, match="verify must be"):
        effective("never", "x86_64")


async def test_concurrent_gets_share_what_is_remembered(make_node, connect):
    node = await make_node()
    async with connect(node) as client:
        keys = make_keys(*range(8))
        data = contents(keys, 100_000)
        await client.put(keys, data)
        into = [buffers(8, 100_000) for _ in range(16)]
        misses = await asyncio.gather(*(client.get(keys, targets) for targets in into))
        assert misses == [{}] * 16
        assert all(targets == data for targets in into)

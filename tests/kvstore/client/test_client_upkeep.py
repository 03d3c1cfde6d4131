"""Verbs about blocks that are there: how long they stay, and what the node tells."""

from __future__ import annotations

import pytest

import kvstore
from kvstore.client.retention import Retention
from kvstore.core.errors import InvalidArgumentError
from kvstore.tiers.base import MissReason, TierKind

from .conftest import WAYS, buffers, contents, make_keys

MIB = 1 << 20


@pytest.mark.parametrize("way", WAYS)
async def test_removed_and_cleared_blocks_are_gone(make_node, connect, way):
    node = await make_node()
    async with connect(node, way) as client:
        keys = make_keys(*range(4))
        await client.put(keys, contents(keys, 1000))
        assert await client.remove(keys[1:3]) == 2
        assert await client.remove(keys[1:3]) == 0
        assert list(await client.get(keys, buffers(4, 1000))) == [1, 2]
        assert await client.clear() == 2
        assert len(await client.get(keys, buffers(4, 1000))) == 4


@pytest.mark.parametrize("ttl_s", [None, 60.0])
async def test_pinned_blocks_stay_when_others_must_go(make_node, connect, ttl_s):
    node = await make_node(host=4 * MIB)
    async with connect(node) as client:
        keys = make_keys("pinned", "not there")
        await client.put(keys[:1], contents(keys[:1], MIB))
        assert await client.pin(keys, ttl_s=ttl_s) == {1: MissReason.NEVER_STORED}
        for i in range(8):
            other = make_keys(i)
            await client.put(other, contents(other, MIB))
        assert len(await client.match(keys)) == 1
        assert await client.unpin(keys) == 1
        for i in range(8, 16):
            other = make_keys(i)
            await client.put(other, contents(other, MIB))
        assert len(await client.match(keys)) == 0


async def test_what_is_retained_outlives_what_is_not(make_node, connect):
    node = await make_node(host=4 * MIB)
    async with connect(node) as client:
        early, later = make_keys("early"), make_keys("later")
        keep = [Retention(0, 1, priority=90)]
        await client.put(early, contents(early, MIB), retention=keep)
        await client.put(later, contents(later, MIB))
        assert await client.retain(later, [Retention(0, 1, 80, duration_s=60)]) == 1
        assert await client.retain(make_keys("absent"), keep) == 0
        for i in range(8):
            other = make_keys(i)
            await client.put(other, contents(other, MIB))
        assert len(await client.match(early)) == len(await client.match(later)) == 1


def test_retention_of_tokens_covers_every_block_that_holds_one():
    assert Retention.of_tokens(0, 16, 16, 50) == Retention(0, 1, 50)
    assert Retention.of_tokens(17, 33, 16, 50, 1.5) == Retention(1, 3, 50, 1.5)
    assert Retention.of_tokens(31, 32, 16, 50) == Retention(1, 2, 50)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ((1, 1, 50), "first must be below"),
        ((-1, 1, 50), "first must be below"),
        ((0, 1, 101), r"priority.*\[0, 100\]"),
        ((0, 1, -1), r"priority.*\[0, 100\]"),
        ((0, 1, 50, 0.0), "duration_s must be positive"),
    ],
)
def test_retention_that_makes_no_sense_is_refused(fields, words):
    with pytest.raises(InvalidArgumentError, match=words):
        Retention(*fields)


async def test_a_pin_needs_a_time_or_none(make_node, connect):
    node = await make_node()
    async with connect(node) as client:
        with pytest.raises(InvalidArgumentError, match="ttl_s must be positive"):
            await client.pin(make_keys("a"), ttl_s=0)


async def test_prefetch_brings_blocks_up(make_node, connect, tmp_path):
    node = await make_node(host=4 * MIB, disk=64 * MIB, disk_path=tmp_path / "disk")
    async with connect(node) as client:
        for i in range(8):
            keys = make_keys(i)
            await client.put(keys, contents(keys, MIB))
            while (await client.statistics()).tiers[1].blocks < i + 1:
                pass  # each is written through before the next
        down = [i for i in range(8) if (await client.match(make_keys(i))).tiers == [TierKind.DISK]]
        keys = make_keys(down[0], "nowhere")
        prefetched = await client.prefetch(keys)
        assert (prefetched.num_resident, prefetched.num_started) == (0, 1)
        async with await client.acquire(keys[:1], deadline_s=10) as lease:
            assert len(lease.found) == 1
            again = await client.prefetch(keys[:1])
            assert (again.num_resident, again.num_started) == (1, 0)


async def test_tenants_do_not_see_each_other(make_node, connect):
    node = await make_node()
    keys = make_keys("a")
    async with connect(node, tenant="one") as one, connect(node, tenant="two") as two:
        await one.put(keys, contents(keys, 1000))
        assert await two.get(keys, buffers(1, 1000)) == {0: MissReason.NEVER_STORED}
        assert len(await two.match(keys)) == 0
        assert await two.clear() == 0
        assert await one.get(keys, buffers(1, 1000)) == {}
        assert len(await one.match(keys)) == 1


async def test_a_node_says_who_it_is(make_node, connect):
    node = await make_node(node_id="me")
    async with connect(node) as client:
        record = await client.describe()
        assert (record.node_id, record.boot_id) == ("me", node.epoch)
        assert record.zmq_endpoint == node.zmq_endpoint


def test_the_same_without_await():
    keys = make_keys("a", "b")
    with kvstore.open(host="16MiB", tenant="me") as store:
        store.put(keys, contents(keys, 1000), retention=[Retention(0, 2, 50)])
        assert store.pin(keys, ttl_s=60) == {}
        assert store.retain(keys, [Retention(0, 1, 60)]) == 2 - 1
        assert store.unpin(keys) == 2
        assert store.prefetch(keys).num_resident == 2
        assert len(store.match(keys, remote=True).nodes) == 0
        assert store.remove(keys[:1]) == 1
        assert store.clear() == 1

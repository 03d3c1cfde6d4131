"""Blocks on their way to the disk tier and back."""

from __future__ import annotations

import asyncio

from kvstore.tiers.base import MissReason, ReserveOutcome, TierKind

from .conftest import BLOCK_BYTES, Gate, content, make_keys

HOST, DISK = TierKind.HOST, TierKind.DISK
DISK_BYTES = 16 << 20


async def _stored_on_disk_only(store, *names):
    session, keys = store.open(), make_keys(*names)
    store.put(session, keys)
    await store.flush()
    assert store.sink.held[DISK] >= set(keys)
    store.manager._replicas.lost(HOST, store.host.drop(keys))
    return session, keys


async def test_blocks_come_back_from_disk_and_stay_in_the_host_tier(make_store):
    async with make_store(disk=DISK_BYTES) as store:
        session, keys = await _stored_on_disk_only(store, *range(20))
        assert store.manager.match(keys) == [DISK] * 20
        acquired = await store.acquire(session, keys)
        assert acquired.tiers == [DISK] * 20
        for i, block_hash in enumerate(keys.hashes):
            assert store.read(session, acquired.lease, i) == content(block_hash)
        assert (await store.acquire(session, keys)).tiers == [HOST] * 20
        assert store.sink.held[HOST] == set(keys)
        hits = {tier.kind: tier.hits for tier in store.manager.statistics().tiers}
        assert hits == {HOST: 20, DISK: 20, TierKind.REMOTE: 0}


async def test_the_disk_tier_is_warm_after_a_restart(make_store):
    keys = make_keys(*range(20))
    async with make_store(disk=DISK_BYTES) as store:
        store.put(store.open(), keys)
    async with make_store(disk=DISK_BYTES) as store:
        assert store.sink.held == {HOST: set(), DISK: set(keys)}
        session = store.open()
        acquired = await store.acquire(session, keys)
        assert acquired.tiers == [DISK] * 20
        assert store.read(session, acquired.lease, 19) == content(keys.hashes[19])


async def test_eviction_from_the_host_tier_leaves_the_disk_replica(make_store):
    async with make_store(host=4 << 20, disk=DISK_BYTES) as store:
        session, keys = store.open(), make_keys(*range(20))
        store.put(session, keys)
        await store.flush()
        for first in (100, 120, 140):
            store.put(session, make_keys(*range(first, first + 20)))
            await store.flush()
        assert DISK in store.manager.match(keys)
        acquired = await store.acquire(session, make_keys(19))
        assert acquired.tiers == [DISK]


async def test_readers_of_one_block_share_its_promotion(make_store):
    async with make_store(disk=DISK_BYTES) as store:
        session, keys = await _stored_on_disk_only(store, "a", "b")
        gate = Gate(store.disk, "load")
        acquiring = [asyncio.ensure_future(store.acquire(session, keys)) for _ in range(5)]
        await asyncio.sleep(0)
        gate.open.set()
        for acquired in await asyncio.gather(*acquiring):
            assert acquired.tiers == [DISK, DISK]
        assert gate.num_calls == 1


async def test_a_promotion_that_takes_too_long_is_late_and_goes_on(make_store):
    async with make_store(disk=DISK_BYTES) as store:
        session, keys = await _stored_on_disk_only(store, "a")
        gate = Gate(store.disk, "load")
        assert (await store.acquire(session, keys, wait_s=0.01)).tiers == [MissReason.LATE]
        assert (await store.acquire(session, keys, wait_s=0)).tiers == [MissReason.LATE]
        gate.open.set()
        assert (await store.acquire(session, keys)).tiers == [DISK]
        assert gate.num_calls == 1


async def test_promotions_beyond_their_bound_are_late(make_store):
    async with make_store(host=4 << 20, disk=DISK_BYTES) as store:
        bound = (4 << 20) // 2 // BLOCK_BYTES
        session, first = await _stored_on_disk_only(store, *range(bound))
        _, second = await _stored_on_disk_only(store, "one", "more")
        gate = Gate(store.disk, "load")
        assert set((await store.acquire(session, first, wait_s=0)).tiers) == {MissReason.LATE}
        assert (await store.acquire(session, second)).tiers == [MissReason.LATE] * 2
        gate.open.set()
        assert (await store.acquire(session, first)).tiers == [DISK] * bound
        assert (await store.acquire(session, second)).tiers == [DISK] * 2


async def test_a_promotion_without_room_is_no_space(make_store):
    async with make_store(host=4 << 20, disk=DISK_BYTES) as store:
        session, keys = await _stored_on_disk_only(store, "a")
        store.reserve(session, make_keys(*range(100)))
        assert (await store.acquire(session, keys)).tiers == [MissReason.NO_SPACE]


async def test_corrupt_bytes_on_disk_are_a_miss_and_are_dropped(make_store, tmp_path):
    async with make_store(disk=DISK_BYTES) as store:
        session, keys = await _stored_on_disk_only(store, "a")
        needle = content(keys.hashes[0])[:4096]
        for segment in (tmp_path / "disk").glob("segment-*"):
            data = segment.read_bytes()
            if (at := data.find(needle)) >= 0:
                with segment.open("r+b") as file:
                    file.seek(at)
                    file.write(b"wrong")
        assert (await store.acquire(session, keys)).tiers == [MissReason.CORRUPT]
        assert store.sink.held == {HOST: set(), DISK: set()}
        assert (await store.acquire(session, keys)).tiers == [MissReason.CORRUPT]
        assert store.put(session, keys) == [ReserveOutcome.RESERVED], "can be written again"
        assert (await store.acquire(session, keys)).tiers == [HOST]


async def test_a_disk_that_falls_behind_leaves_blocks_in_the_host_tier(make_store):
    async with make_store(host=4 << 20, disk=DISK_BYTES) as store:
        gate = Gate(store.disk, "store")
        session, keys = store.open(), make_keys(*range(40))
        store.put(session, keys)
        bound = (4 << 20) // 2 // BLOCK_BYTES
        assert store.manager.statistics().write_through_skipped == len(keys) - bound
        gate.open.set()
        await store.flush()
        assert store.sink.held[DISK] == set(keys[:bound])
        assert store.sink.held[HOST] == set(keys)


async def test_a_disk_that_fails_costs_misses_only(make_store):
    async with make_store(disk=DISK_BYTES) as store:
        session, keys = await _stored_on_disk_only(store, "a")

        def fail(*_):
            raise OSError("no such device")

        store.disk.load = store.disk.store = fail
        assert (await store.acquire(session, keys)).tiers == [MissReason.FAILED]
        more = make_keys("b")
        store.put(session, more)
        await store.flush()
        assert (await store.acquire(session, more)).tiers == [HOST]


async def test_stopping_writes_the_queue_to_disk(make_store):
    async with make_store(disk=DISK_BYTES) as store:
        keys = make_keys(*range(10))
        store.put(store.open(), keys)
        await store.store.drain()
        assert store.sink.held[DISK] == set(keys)

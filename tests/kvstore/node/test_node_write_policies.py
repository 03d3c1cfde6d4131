"""Which blocks reach the disk tier under each policy, and what the disk falling behind costs."""

from __future__ import annotations

import asyncio

import pytest

from kvstore.tiers.base import MissReason, ReserveOutcome, TierKind

from .conftest import BLOCK_BYTES, Gate, content, make_keys

HOST, DISK = TierKind.HOST, TierKind.DISK
HOST_BYTES, DISK_BYTES = 4 << 20, 64 << 20
SLOTS = HOST_BYTES // BLOCK_BYTES
RESERVED = ReserveOutcome.RESERVED


def skipped(store):
    return store.manager.statistics().write_through_skipped


async def settle(store):
    """Ticks until nothing more goes to disk."""
    for _ in range(10):
        store.manager.tick()
        await store.flush()


async def use(store, session, keys):
    acquired = await store.acquire(session, keys)
    store.manager.release(session, [acquired.lease.id])
    return acquired.tiers


async def test_through_blocks_that_the_queue_had_no_room_for_are_offered_again(make_store):
    async with make_store(host=HOST_BYTES, disk=DISK_BYTES) as store:
        gate = Gate(store.disk, "store")
        session, keys = store.open(), make_keys(*range(40))
        store.put(session, keys)
        assert skipped(store) == 40 - SLOTS // 2
        gate.open.set()
        await settle(store)
        assert store.sink.held[DISK] == set(keys)
        assert skipped(store) == 0


async def test_through_what_leaves_before_its_turn_is_counted_for_good(make_store):
    async with make_store(host=HOST_BYTES, disk=DISK_BYTES) as store:
        gate = Gate(store.disk, "store")
        session = store.open()
        queued = make_keys(*range(SLOTS // 2))
        store.put(session, queued)
        left_out = make_keys(*range(100, 110))
        store.put(session, left_out)
        assert skipped(store) == 10
        store.put(session, make_keys(*range(200, 200 + SLOTS // 2)))
        assert store.manager.match(left_out) == []
        gate.open.set()
        await settle(store)
        present = store.sink.held[HOST] | store.sink.held[DISK]
        assert skipped(store) >= 10
        assert len(present) + skipped(store) == SLOTS + 10
        assert present.isdisjoint(left_out)
        assert store.sink.held[DISK] >= set(queued)


async def test_back_nothing_is_written_while_there_is_room(make_store):
    async with make_store(host=HOST_BYTES, disk=DISK_BYTES, disk_policy="write-back") as store:
        session, keys = store.open(), make_keys(*range(SLOTS * 8 // 10))
        store.put(session, keys)
        await settle(store)
        assert store.sink.held[DISK] == set()
        assert skipped(store) == 0


async def test_back_the_least_recently_used_are_written_before_eviction_needs_them(make_store):
    async with make_store(
        host=HOST_BYTES,
        disk=DISK_BYTES,
        disk_policy="write-back",
        low_watermark=0.5,
        high_watermark=0.9,
    ) as store:
        session, keys = store.open(), make_keys(*range(SLOTS * 8 // 10))
        for i in range(len(keys)):
            store.put(session, keys[i : i + 1])
        await use(store, session, keys[:4])
        await settle(store)
        excess = len(keys) - SLOTS // 2
        assert store.sink.held[DISK] == set(keys[4 : 4 + excess])
        assert store.sink.held[HOST] == set(keys), "clean, and still here"
        store.put(session, make_keys(*range(100, 110)))
        store.manager.tick()
        assert store.host.statistics().evictions == excess, "all that was clean"
        await settle(store)
        assert len(store.sink.held[DISK]) == excess, "no more while there is room again"
        assert skipped(store) == 0
        for i in range(4):
            assert store.manager.match(keys[i : i + 1]) == [HOST]
        assert store.manager.match(keys[4:5]) == [DISK]


async def test_back_a_block_that_is_evicted_can_be_read_again(make_store):
    async with make_store(host=HOST_BYTES, disk=DISK_BYTES, disk_policy="write-back") as store:
        session, written = store.open(), []
        for first in range(0, 4 * SLOTS, 4):
            keys = make_keys(*range(first, first + 4))
            assert store.put(session, keys) == [RESERVED] * 4
            written += list(keys)
            store.manager.tick()
            await store.flush()
        assert skipped(store) == 0
        for first in range(0, 4 * SLOTS, SLOTS // 4):
            keys = make_keys(*range(first, first + SLOTS // 4))
            acquired = await store.acquire(session, keys)
            assert set(acquired.tiers) <= {HOST, DISK}
            for index, key in enumerate(acquired.lease.keys):
                assert store.read(session, acquired.lease, index) == content(key.hash)
            store.manager.release(session, [acquired.lease.id])


async def test_back_a_write_is_not_refused_for_want_of_a_clean_block(make_store):
    async with make_store(host=HOST_BYTES, disk=DISK_BYTES, disk_policy="write-back") as store:
        gate = Gate(store.disk, "store")
        session = store.open()
        for first in range(0, 3 * SLOTS, 8):
            assert store.put(session, make_keys(*range(first, first + 8))) == [RESERVED] * 8
        lost = skipped(store)
        assert lost > 0
        gate.open.set()
        await settle(store)
        present = len(store.sink.held[HOST] | store.sink.held[DISK])
        assert present + lost == 3 * SLOTS, "each block is somewhere, or counted"
        assert (await use(store, session, make_keys(40)))[0] in (
            HOST,
            DISK,
            MissReason.EVICTED,
        )


async def test_back_stopping_writes_all_that_is_not_on_disk(make_store):
    settings = {"host": HOST_BYTES, "disk": DISK_BYTES, "disk_policy": "write-back"}
    keys = make_keys(*range(SLOTS * 8 // 10))
    async with make_store(**settings) as store:
        store.put(store.open(), keys)
        assert store.sink.held[DISK] == set()
    async with make_store(**settings) as store:
        assert store.sink.held[DISK] == set(keys)


async def test_back_stopping_ends_in_its_time_and_counts_what_it_gives_up(make_store):
    async with make_store(host=HOST_BYTES, disk=DISK_BYTES, disk_policy="write-back") as store:
        gate = Gate(store.disk, "store")
        keys = make_keys(*range(SLOTS * 8 // 10))
        store.put(store.open(), keys)
        stopping = asyncio.ensure_future(store.manager.stop(0.05))
        await asyncio.sleep(0.2)
        gate.open.set()
        await stopping
        assert 0 < len(store.sink.held[DISK]) < len(keys)
        assert len(store.sink.held[DISK]) + skipped(store) == len(keys)


async def test_back_a_removed_block_is_not_written(make_store):
    async with make_store(host=HOST_BYTES, disk=DISK_BYTES, disk_policy="write-back") as store:
        session, keys = store.open(), make_keys("a", "b")
        store.put(session, keys)
        await store.manager.keeper.remove(session, keys[:1])
        await store.manager.stop(5)
        assert store.sink.held[DISK] == set(keys[1:])
        assert skipped(store) == 0


async def test_back_a_block_larger_than_the_queue_does_not_hold_up_the_end(make_store):
    async with make_store(host=HOST_BYTES, disk=DISK_BYTES, disk_policy="write-back") as store:
        session = store.open()
        reservation, _ = store.reserve(session, make_keys("a"), 3 << 20)
        store.fill(session, reservation)
        await store.manager.stop(60)
        assert skipped(store) == 1


@pytest.mark.parametrize("uses", [1, 2, 3])
async def test_selective_takes_what_was_used_often_enough(make_store, uses):
    async with make_store(
        host=HOST_BYTES, disk=DISK_BYTES, disk_policy="selective", disk_min_uses=uses
    ) as store:
        session, keys = store.open(), make_keys("often", "rarely")
        store.put(session, keys)
        for _ in range(uses - 1):
            await use(store, session, keys)
        await settle(store)
        assert store.sink.held[DISK] == set()
        await use(store, session, keys[:1])
        await settle(store)
        assert store.sink.held[DISK] == set(keys[:1])


async def test_selective_passes_over_what_is_yet_to_be_written(make_store):
    async with make_store(
        host=HOST_BYTES, disk=DISK_BYTES, disk_policy="selective", disk_min_uses=1
    ) as store:
        gate = Gate(store.disk, "store")
        session, keys = store.open(), make_keys(*range(SLOTS // 2 + 4))
        store.put(session, keys)
        await use(store, session, keys)
        assert skipped(store) == 4
        for first in range(100, 100 + SLOTS, 4):
            assert store.put(session, make_keys(*range(first, first + 4))) == [RESERVED] * 4
        assert store.manager.match(keys) == [HOST] * len(keys)
        gate.open.set()
        await settle(store)
        assert store.sink.held[DISK] == set(keys)
        assert skipped(store) == 0


async def test_selective_remembers_uses_of_a_block_that_was_evicted(make_store):
    async with make_store(
        host=HOST_BYTES, disk=DISK_BYTES, disk_policy="selective", disk_min_uses=2
    ) as store:
        session, keys = store.open(), make_keys("a")
        for turn in range(2):
            store.put(session, keys)
            await use(store, session, keys)
            store.put(session, make_keys(*(f"{turn} {i}" for i in range(SLOTS))))
        await settle(store)
        assert store.sink.held[DISK] == set(keys)


async def test_demotion_is_no_use_for_eviction(make_store):
    async with make_store(host=HOST_BYTES, disk=DISK_BYTES) as store:
        session, old, new = store.open(), make_keys("old"), make_keys("new")
        gate = Gate(store.disk, "store")
        store.put(session, make_keys(*range(SLOTS // 2)))
        store.put(session, old)
        store.put(session, new)
        gate.open.set()
        await settle(store)
        assert store.sink.held[DISK] >= {*old, *new}
        store.put(session, make_keys(*range(100, 100 + SLOTS - 1)))
        assert store.manager.match(new) == [HOST]
        assert store.manager.match(old) == [DISK]

"""The life of a block, on a manual clock."""

from __future__ import annotations

import asyncio

import pytest

from kvstore.core.errors import (
    InvalidArgumentError,
    LayoutMismatchError,
    LeaseExpiredError,
    ReservationExpiredError,
    SessionExpiredError,
    UnavailableError,
)
from kvstore.core.layout import KVLayout
from kvstore.node.writing import CommittedBlock
from kvstore.tiers.base import MissReason, ReserveOutcome, TierKind

from .conftest import BLOCK_BYTES, TTL_S, content, make_keys

RESERVED, EXISTS, PENDING, NO_SPACE, _ = ReserveOutcome
HOST, DISK = TierKind.HOST, TierKind.DISK


async def test_a_block_is_visible_after_commit_and_not_before(make_store):
    async with make_store() as store:
        session, keys = store.open(), make_keys("a", "b")
        reservation, outcomes = store.reserve(session, keys)
        assert outcomes == [RESERVED, RESERVED]
        assert store.manager.match(keys) == []
        assert (await store.acquire(session, keys)).tiers == [MissReason.PENDING] * 2
        assert store.reserve(session, keys)[1] == [PENDING, PENDING]
        store.fill(session, reservation)
        assert store.manager.match(keys) == [HOST, HOST]
        assert store.reserve(session, keys)[1] == [EXISTS, EXISTS]
        acquired = await store.acquire(session, keys)
        assert acquired.tiers == [HOST, HOST]
        assert store.read(session, acquired.lease, 1) == content(keys.hashes[1])
        assert store.sink.held[HOST] == set(keys)


async def test_what_is_all_in_host_memory_is_acquired_without_waiting(make_store):
    async with make_store() as store:
        session, keys = store.open(), make_keys("a", "b")
        store.fill(session, store.reserve(session, keys)[0])
        touched, host = [], store.manager._replicas.host
        host.touch = touched.append
        acquired = store.manager.acquire_now(session, keys)
        assert acquired.tiers == [HOST, HOST]
        assert store.read(session, acquired.lease, 1) == content(keys.hashes[1])
        assert touched == []
        await asyncio.sleep(0)
        assert touched == [list(keys)], "eviction knows before the next call is heard"
        store.manager.release(session, [acquired.lease.id])
        assert store.manager.acquire_now(session, make_keys("a", "unknown")) is None
        statistics = store.manager.statistics()
        assert (statistics.tiers[0].hits, statistics.misses, statistics.leases) == (2, {}, 0)
        assert host.evict(list(keys)) == list(keys), "nobody holds a reference"


async def test_blocks_of_one_reservation_are_committed_as_they_get_full(make_store):
    async with make_store() as store:
        session, keys = store.open(), make_keys("a", "b", "c")
        reservation, _ = store.reserve(session, keys)
        store.fill(session, reservation, [1])
        assert (await store.acquire(session, keys)).tiers == [
            MissReason.PENDING,
            HOST,
            MissReason.PENDING,
        ]
        store.manager.abort(session, reservation.id)
        store.manager.abort(session, reservation.id)
        assert (await store.acquire(session, keys)).tiers == [
            MissReason.NEVER_STORED,
            HOST,
            MissReason.NEVER_STORED,
        ]


async def test_match_ends_at_the_first_hole(make_store):
    async with make_store() as store:
        session = store.open()
        store.put(session, make_keys("a", "c"))
        assert store.manager.match(make_keys("a", "b", "c")) == [HOST]


@pytest.mark.parametrize(
    ("blocks", "words"),
    [
        ([CommittedBlock(2, 1, 0)], "indices: 2"),
        ([CommittedBlock(0, 1, 0), CommittedBlock(0, 1, 0)], "must not repeat"),
        ([CommittedBlock(0, 0, 0)], "lengths_bytes"),
        ([CommittedBlock(0, 1, 0), CommittedBlock(1, BLOCK_BYTES + 1, 0)], "lengths_bytes"),
    ],
)
async def test_a_commit_that_makes_no_sense_changes_nothing(make_store, blocks, words):
    async with make_store() as store:
        session, keys = store.open(), make_keys("a", "b")
        reservation, _ = store.reserve(session, keys)
        with pytest.raises(InvalidArgumentError, match=words):
            store.manager.commit(session, reservation.id, blocks)
        assert store.manager.match(keys) == []
        store.fill(session, reservation)
        assert store.manager.match(keys) == [HOST, HOST]


@pytest.mark.parametrize("ticked", [False, True])
async def test_a_reservation_ends_though_its_session_is_kept_alive(make_store, ticked):
    async with make_store() as store:
        session, keys = store.open(), make_keys("a")
        reservation, _ = store.reserve(session, keys)
        store.clock.advance(TTL_S * 0.6)
        store.manager.keep_alive(session)
        store.clock.advance(TTL_S * 0.6)
        if ticked:
            store.manager.tick()
        with pytest.raises(ReservationExpiredError):
            store.fill(session, reservation)
        store.manager.tick()
        assert store.put(session, keys) == [RESERVED], "the slot of a remote writer is free"


async def test_a_commit_renews_the_rest_of_its_reservation(make_store):
    async with make_store() as store:
        session, keys = store.open(), make_keys("a", "b")
        reservation, _ = store.reserve(session, keys)
        for index in range(2):
            store.clock.advance(TTL_S * 0.7)
            store.manager.keep_alive(session)
            store.manager.tick()
            store.fill(session, reservation, [index])
        assert store.manager.match(keys) == [HOST, HOST]


async def test_a_silent_session_ends_with_all_it_holds(make_store):
    async with make_store() as store:
        session, keys = store.open(), make_keys("a", "b")
        store.put(session, make_keys("a"))
        store.reserve(session, make_keys("b"))
        await store.acquire(session, keys)
        store.clock.advance(TTL_S)
        with pytest.raises(SessionExpiredError):
            store.manager.keep_alive(session)
        store.manager.tick()
        statistics = store.manager.statistics()
        assert (statistics.sessions, statistics.leases, statistics.reservations) == (0, 0, 0)
        assert statistics.orphaned_blocks == 0
        assert store.put(store.open(), keys) == [EXISTS, RESERVED]


async def test_the_slot_of_a_writer_that_may_still_write_waits_for_its_word(make_store):
    async with make_store() as store:
        session, keys = store.open(local=True), make_keys("a")
        reservation, _ = store.reserve(session, keys)
        store.clock.advance(TTL_S)
        store.manager.tick()
        other = store.open()
        assert store.manager.statistics().orphaned_blocks == 1
        assert (await store.acquire(other, keys)).tiers == [MissReason.NEVER_STORED]
        second, outcomes = store.reserve(other, keys)
        assert outcomes == [RESERVED], "the key is free, the memory is not"
        assert second.slots[0].offset != reservation.slots[0].offset
        used_bytes = store.host.statistics().used_bytes
        store.manager.abort(session, reservation.id)
        assert store.manager.statistics().orphaned_blocks == 0
        assert store.host.statistics().used_bytes == used_bytes // 2
        store.fill(other, second)
        assert (await store.acquire(other, keys)).tiers == [HOST]


async def test_closing_a_session_that_expired_gives_its_slots_back(make_store):
    async with make_store() as store:
        session = store.open(local=True)
        store.reserve(session, make_keys("a"))
        store.reserve(session, make_keys("b"))
        store.clock.advance(TTL_S)
        store.manager.tick()
        assert store.manager.statistics().orphaned_blocks == 2
        store.manager.close_session(session)
        assert store.manager.statistics().orphaned_blocks == 0


async def test_a_lease_keeps_its_block_until_release_or_the_end_of_its_time(make_store):
    async with make_store(host=4 << 20) as store:
        session, keys = store.open(), make_keys("a")
        store.put(session, keys)
        acquired = await store.acquire(session, keys)
        store.put(session, make_keys(*range(200)))
        assert store.read(session, acquired.lease, 0) == content(keys.hashes[0])
        store.clock.advance(TTL_S * 0.9)
        store.manager.keep_alive(session)
        store.clock.advance(TTL_S * 0.1)
        with pytest.raises(LeaseExpiredError):
            store.read(session, acquired.lease, 0)
        store.manager.tick()
        store.put(session, make_keys(*range(1000, 1200)))
        assert (await store.acquire(session, keys)).tiers == [MissReason.EVICTED]
        store.manager.release(session, [acquired.lease.id])


async def test_each_miss_has_one_reason(make_store):
    async with make_store(host=4 << 20) as store:
        session = store.open()
        store.put(session, make_keys("old"))
        store.put(session, make_keys(*range(100)))
        store.reserve(session, make_keys("writing"))
        acquired = await store.acquire(session, make_keys("old", "never", "writing"))
        assert acquired.tiers == [
            MissReason.EVICTED,
            MissReason.NEVER_STORED,
            MissReason.PENDING,
        ]
        assert store.manager.statistics().misses == dict.fromkeys(acquired.tiers, 1)
        assert store.sink.held[HOST] == {info.key for info in store.host.inventory()}


async def test_a_full_tier_of_leased_blocks_has_no_space(make_store):
    async with make_store(host=4 << 20) as store:
        session, many = store.open(), make_keys(*range(100))
        outcomes = store.put(session, many)
        await store.acquire(session, many)
        assert RESERVED in outcomes
        assert NO_SPACE in outcomes
        assert store.reserve(session, make_keys("one more"))[1] == [NO_SPACE]


async def test_a_session_writes_only_layouts_that_it_named(make_store):
    async with make_store() as store:
        layout = KVLayout(2, 2, 8, 16, "float32")
        session = store.manager.open_session("named", None, [layout])
        with pytest.raises(LayoutMismatchError, match="layout_fingerprint"):
            store.reserve(session.id, make_keys("a"))


async def test_a_reservation_id_of_the_client_can_be_aborted_by_it(make_store):
    async with make_store() as store:
        session, keys = store.open(local=True), make_keys("a")
        store.manager.reserve(session, keys, BLOCK_BYTES, 7)
        with pytest.raises(InvalidArgumentError, match="reservation_id 7"):
            store.manager.reserve(session, make_keys("b"), BLOCK_BYTES, 7)
        store.manager.abort(session, 7)
        assert store.reserve(session, keys)[1] == [RESERVED]


async def test_a_block_that_a_reader_reports_is_dropped_if_it_is_bad(make_store):
    async with make_store() as store:
        session, keys = store.open(), make_keys("good", "bad")
        store.put(session, keys)
        acquired = await store.acquire(session, keys)
        store.host.view(acquired.lease.residents[1].slot)[100] ^= 1
        assert await store.manager.report(session, acquired.lease.id, [0, 1]) == 1
        assert (await store.acquire(session, keys)).tiers == [HOST, MissReason.CORRUPT]
        store.manager.release(session, [acquired.lease.id])
        assert store.put(session, keys) == [EXISTS, RESERVED]
        assert (await store.acquire(session, keys)).tiers == [HOST, HOST]
        assert store.manager.statistics().tiers[0].corruptions == 1


async def test_a_stopping_store_refuses_new_writes_and_still_reads(make_store):
    async with make_store() as store:
        session, keys = store.open(), make_keys("a")
        store.put(session, keys)
        await store.store.drain()
        with pytest.raises(UnavailableError):
            store.reserve(session, make_keys("b"))
        assert (await store.acquire(session, keys)).tiers == [HOST]


async def test_a_session_that_ends_during_its_acquire_leaves_no_lease(make_store):
    async with make_store(disk=16 << 20) as store:
        from .conftest import Gate

        session, keys = store.open(), make_keys("a")
        store.put(session, keys)
        await store.flush()
        store.host.drop(keys)
        gate = Gate(store.disk, "load")
        acquiring = asyncio.ensure_future(store.acquire(session, keys))
        await asyncio.sleep(0)
        store.manager.close_session(session)
        gate.open.set()
        with pytest.raises(SessionExpiredError):
            await acquiring
        assert store.host.drop(keys)
        assert store.host.statistics().used_bytes == 0, "no reference is left"

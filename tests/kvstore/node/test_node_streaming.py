"""Blocks are read while they are written, and count only if they are committed in the end."""

from __future__ import annotations

import asyncio
import sys

import pytest

from kvstore.core.errors import InvalidArgumentError, LeaseExpiredError, UnavailableError
from kvstore.tiers.base import MissReason, ReserveOutcome, TierKind
from kvstore.tiers.host.arena import Arena
from kvstore.transports.process import ProcessIdentity, _read_status

from .conftest import BLOCK_BYTES, TTL_S, content, make_keys, wire

HOST = TierKind.HOST
PENDING, FAILED, NEVER_STORED = MissReason.PENDING, MissReason.FAILED, MissReason.NEVER_STORED


async def follow(store, session, keys):
    return await store.call("Acquire", session_id=session, keys=wire(keys), streaming=True)


async def confirm(store, session, acquired, wait_ms=0):
    return await store.call(
        "Confirm", session_id=session, lease_id=acquired.lease_id, wait_ms=wait_ms
    )


async def test_layers_are_seen_before_the_commit_and_count_after_it(make_store):
    async with make_store() as store:
        writer, reader, keys = store.open(local=True), store.open(local=True), make_keys("a", "b")
        store.put(writer, keys[:1])
        reservation, _ = store.reserve(writer, keys[1:])
        acquired = await follow(store, reader, keys)
        assert list(acquired.tiers) == [HOST, HOST]
        assert acquired.pending == bytes([0, 1])
        assert acquired.lengths_bytes[1] == BLOCK_BYTES
        assert acquired.checksums[1] == 0
        mapped = Arena.attach(store.store.facts.arena_path)
        offset, generation = acquired.offsets[1], acquired.generations[1]
        assert mapped.layers_ready(offset) == 0
        store.host.view(reservation.slots[0])[:4] = b"some"
        store.host.arena.set_layers_ready(offset, 1)
        assert mapped.layers_ready(offset) == 1
        assert bytes(mapped.view(offset, 4)) == b"some"
        assert list((await confirm(store, reader, acquired)).miss_reasons) == [0, PENDING]
        store.fill(writer, reservation)
        confirmed = await confirm(store, reader, acquired)
        assert list(confirmed.miss_reasons) == [0, 0]
        assert confirmed.checksums[0] == acquired.checksums[0]
        assert confirmed.checksums[1] == store.host.info(next(iter(keys[1:]))).checksum
        assert mapped.generation(offset) == generation
        assert bytes(mapped.view(offset, BLOCK_BYTES)) == content(keys.hashes[1])
        mapped.close()
        assert store.manager.statistics().tiers[0].hits == 2
        assert store.manager.statistics().misses.get(PENDING, 0) == 0


async def test_confirm_waits_for_the_commits_of_all_blocks(make_store):
    async with make_store() as store:
        writer, reader, keys = store.open(), store.open(local=True), make_keys(1, 2, 3)
        reservation, _ = store.reserve(writer, keys)
        acquired = await follow(store, reader, keys)
        confirming = asyncio.ensure_future(confirm(store, reader, acquired, wait_ms=20_000))
        for index in range(3):
            for _ in range(3):
                await asyncio.sleep(0)
            assert not confirming.done()
            store.fill(writer, reservation, [index])
        assert list((await confirming).miss_reasons) == [0, 0, 0]
        assert not store.manager._leases._streams._waiters


async def test_confirm_ends_with_its_time(make_store):
    async with make_store() as store:
        writer, reader, keys = store.open(), store.open(local=True), make_keys(1, 2)
        reservation, _ = store.reserve(writer, keys)
        acquired = await follow(store, reader, keys)
        store.fill(writer, reservation, [1])
        confirmed = await confirm(store, reader, acquired, wait_ms=10)
        assert list(confirmed.miss_reasons) == [PENDING, 0]
        assert not store.manager._leases._streams._waiters


@pytest.mark.parametrize("ending", ["abort", "close", "expiry", "silence"])
@pytest.mark.parametrize("local", [False, True])
async def test_a_writer_that_ends_without_commit_fails_its_readers_at_once(
    make_store, ending, local
):
    async with make_store() as store:
        writer, reader, keys = store.open(local=local), store.open(local=True), make_keys(1, 2)
        reservation, _ = store.reserve(writer, keys)
        store.clock.advance(TTL_S / 2)
        store.manager.keep_alive(reader)
        acquired = await follow(store, reader, keys)
        confirming = asyncio.ensure_future(confirm(store, reader, acquired, wait_ms=60_000))
        await asyncio.sleep(0)
        if ending == "abort":
            store.manager.abort(writer, reservation.id)
        elif ending == "close":
            store.manager.close_session(writer)
        else:
            if ending == "expiry":
                store.manager.keep_alive(writer)
            store.clock.advance(TTL_S / 2)
            store.manager.keep_alive(reader) if ending == "expiry" else None
            store.manager.tick()
        if ending == "silence":  # the reader's lease has time left, its session was silent too
            store.manager.keep_alive(reader)
        assert list((await confirming).miss_reasons) == [FAILED, FAILED]
        assert list((await confirm(store, reader, acquired)).miss_reasons) == [FAILED, FAILED]
        generation = acquired.generations[0]
        assert store.host.arena.generation(acquired.offsets[0]) > generation, "readers can tell"
        assert store.manager.statistics().misses == {FAILED: 2}
        # Neither the keys wait for the reader, nor does the memory get another use before it ends.
        second, outcomes = store.reserve(store.open(), keys)
        assert outcomes == [ReserveOutcome.RESERVED] * 2
        assert {slot.offset for slot in second.slots}.isdisjoint(acquired.offsets)


async def test_memory_waits_for_the_last_who_may_touch_it(make_store):
    async with make_store() as store:
        writer, keys = store.open(local=True), make_keys(1)
        readers = [store.open(local=True) for _ in range(2)]
        reservation, _ = store.reserve(writer, keys)
        acquired = [await follow(store, reader, keys) for reader in readers]
        store.clock.advance(TTL_S * 0.9)
        for session in (writer, *readers):
            store.manager.keep_alive(session)
        for reader, lease in zip(readers, acquired, strict=True):
            assert store.host.statistics().used_bytes == BLOCK_BYTES
            store.manager.release(reader, [lease.lease_id])
        acquired = await follow(store, readers[0], keys)
        store.clock.advance(TTL_S * 0.1)
        store.manager.tick()
        assert store.manager.statistics().orphaned_blocks == 1
        store.manager.abort(writer, reservation.id)
        assert store.host.statistics().used_bytes == BLOCK_BYTES, "a reader is left"
        store.manager.release(readers[0], [acquired.lease_id])
        assert store.host.statistics().used_bytes == 0


async def test_a_reader_of_a_committed_block_keeps_it_from_eviction(make_store):
    async with make_store() as store:
        writer, reader, keys = store.open(), store.open(local=True), make_keys("a")
        reservation, _ = store.reserve(writer, keys)
        acquired = await follow(store, reader, keys)
        store.fill(writer, reservation)
        for first in range(0, 200, 10):
            store.put(writer, make_keys(*range(first, first + 10)))
        assert store.manager.match(keys) == [HOST]
        assert list((await confirm(store, reader, acquired)).miss_reasons) == [0]
        store.manager.release(reader, [acquired.lease_id])
        store.host.drop(keys)
        assert not store.host.drop(keys)
        used = {info.key for info in store.host.inventory()}
        assert store.host.statistics().used_bytes == len(used) * BLOCK_BYTES


async def test_a_lease_that_ends_during_confirm_is_told_so(make_store):
    async with make_store() as store:
        writer, reader, keys = store.open(), store.open(local=True), make_keys("a")
        reservation, _ = store.reserve(writer, keys)
        acquired = await follow(store, reader, keys)
        confirming = asyncio.ensure_future(confirm(store, reader, acquired, wait_ms=60_000))
        await asyncio.sleep(0)
        store.manager.release(reader, [acquired.lease_id])
        store.fill(writer, reservation)
        with pytest.raises(LeaseExpiredError):
            await confirming
        store.host.drop(keys)
        assert store.host.statistics().used_bytes == 0


async def test_a_session_without_the_arena_gets_pending_misses(make_store):
    async with make_store() as store:
        writer, reader, keys = store.open(), store.open(), make_keys("a")
        store.reserve(writer, keys)
        acquired = await follow(store, reader, keys)
        assert list(acquired.miss_reasons) == [PENDING]
        assert acquired.pending == b""


async def test_without_streaming_a_block_being_written_is_a_miss(make_store):
    async with make_store() as store:
        writer, reader, keys = store.open(), store.open(local=True), make_keys("a")
        store.reserve(writer, keys)
        acquired = await store.call("Acquire", session_id=reader, keys=wire(keys))
        assert list(acquired.miss_reasons) == [PENDING]


async def test_bytes_of_a_block_being_written_are_not_lent_or_judged(make_store):
    async with make_store() as store:
        writer, reader, keys = store.open(), store.open(local=True), make_keys("a")
        reservation, _ = store.reserve(writer, keys)
        acquired = await follow(store, reader, keys)
        with pytest.raises(InvalidArgumentError, match="Confirm"):
            store.manager.bulk.lend(reader, acquired.lease_id, [0])
        with pytest.raises(InvalidArgumentError, match="Confirm"):
            await store.manager.report(reader, acquired.lease_id, [0])
        store.fill(writer, reservation)
        await confirm(store, reader, acquired)
        loan = store.manager.bulk.lend(reader, acquired.lease_id, [0])
        assert bytes(loan.views[0]) == content(keys.hashes[0])
        loan.give_back()
        store.manager.release(reader, [acquired.lease_id])
        assert store.host.drop(keys)
        assert store.host.statistics().used_bytes == 0


async def test_a_session_that_ends_gives_its_streams_back(make_store):
    async with make_store() as store:
        writer, reader, keys = store.open(), store.open(local=True), make_keys(1, 2)
        reservation, _ = store.reserve(writer, keys)
        await follow(store, reader, keys)
        store.manager.close_session(reader)
        store.manager.abort(writer, reservation.id)
        assert store.host.statistics().used_bytes == 0


async def test_a_dead_writer_fails_its_readers_and_leaves_nothing(make_store):
    async with make_store() as store:
        command = [sys.executable, "-c", "import time; time.sleep(600)"]
        process = await asyncio.create_subprocess_exec(*command)
        try:
            identity = ProcessIdentity(process.pid, _read_status(process.pid).start_ticks)
            writer = store.manager.open_session("writer", identity, []).id
            reader, keys = store.open(local=True), make_keys("a")
            store.reserve(writer, keys)
            acquired = await follow(store, reader, keys)
        finally:
            process.kill()
            await process.wait()
        store.manager.tick()
        assert list((await confirm(store, reader, acquired)).miss_reasons) == [FAILED]
        assert store.host.statistics().used_bytes == BLOCK_BYTES
        store.manager.release(reader, [acquired.lease_id])
        assert store.host.statistics().used_bytes == 0
        assert store.manager.statistics().orphaned_blocks == 0


async def test_a_draining_store_still_confirms(make_store):
    async with make_store() as store:
        writer, reader, keys = store.open(), store.open(local=True), make_keys("a")
        reservation, _ = store.reserve(writer, keys)
        acquired = await follow(store, reader, keys)
        await store.store.drain()
        with pytest.raises(UnavailableError):
            store.reserve(writer, make_keys("b"))
        store.fill(writer, reservation)
        assert list((await confirm(store, reader, acquired)).miss_reasons) == [0]

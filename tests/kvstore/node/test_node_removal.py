"""What is removed is gone from every tier, and stays so while the node runs."""

from __future__ import annotations

import asyncio

import pytest

from kvstore.core.errors import LeaseExpiredError
from kvstore.node import removal as removal_module
from kvstore.tiers.base import MissReason, ReserveOutcome, TierKind

from .conftest import Gate, content, make_keys, wire

HOST, DISK = TierKind.HOST, TierKind.DISK
RESERVED, PENDING = ReserveOutcome.RESERVED, ReserveOutcome.PENDING


async def until(happened):
    for _ in range(10_000):
        if happened():
            return
        await asyncio.sleep(0.001)
    pytest.fail("it never happened")


async def remove(store, session, keys):
    return (await store.call("Remove", session_id=session, keys=wire(keys))).num_removed


async def clear(store, session):
    return (await store.call("Clear", session_id=session)).num_removed


async def test_removed_blocks_leave_both_tiers_and_are_told_of(make_store):
    async with make_store(disk=16 << 20) as store:
        session, keys = store.open(), make_keys("a", "b", "c")
        store.put(session, keys)
        await store.flush()
        assert store.sink.held[DISK] == set(keys)
        assert await remove(store, session, make_keys("a", "c", "never", "a")) == 2
        assert store.sink.held == {HOST: set(keys[1:2]), DISK: set(keys[1:2])}
        assert (await store.acquire(session, keys)).tiers == [
            MissReason.NEVER_STORED,
            HOST,
            MissReason.NEVER_STORED,
        ]
        assert store.put(session, keys[:1]) == [RESERVED]


async def test_a_leased_block_is_invisible_at_once_and_its_memory_waits(make_store):
    async with make_store() as store:
        session, keys = store.open(), make_keys("a")
        store.put(session, keys)
        lease = (await store.acquire(session, keys)).lease
        assert await remove(store, session, keys) == 1
        assert store.manager.match(keys) == []
        assert store.reserve(session, keys)[1] == [PENDING]
        assert store.read(session, lease, 0) == content(keys.hashes[0])
        assert await store.manager.report(session, lease.id, [0]) == 0
        assert store.read(session, lease, 0) == content(keys.hashes[0])
        store.manager.release(session, [lease.id])
        assert store.host.statistics().used_bytes == 0
        with pytest.raises(LeaseExpiredError):
            store.read(session, lease, 0)


@pytest.mark.parametrize("after", ["put", "store began"])
async def test_a_block_that_is_removed_while_it_goes_to_disk_does_not_stay_there(make_store, after):
    async with make_store(disk=16 << 20) as store:
        gate = Gate(store.disk, "store")
        session, keys = store.open(), make_keys("a", "b")
        store.put(session, keys)
        if after == "store began":
            await until(lambda: gate.num_calls)
        assert await remove(store, session, keys[:1]) == 1
        gate.open.set()
        await store.flush()
        assert store.sink.held[DISK] == set(keys[1:])
        assert {info.key for info in store.disk.inventory()} == set(keys[1:])
        assert store.manager.match(keys[:1]) == []


async def test_a_block_that_is_removed_on_its_way_up_goes_when_it_has_arrived(make_store):
    async with make_store(disk=16 << 20) as store:
        session, keys = store.open(), make_keys("a")
        store.put(session, keys)
        await store.flush()
        store.manager._replicas.lost(HOST, store.host.drop(keys))
        gate = Gate(store.disk, "load")
        acquiring = asyncio.ensure_future(store.acquire(session, keys))
        await until(lambda: gate.num_calls)
        assert await remove(store, session, keys) == 1
        gate.open.set()
        await acquiring
        assert store.manager.match(keys) == []
        assert store.sink.held == {HOST: set(), DISK: set()}


async def test_clear_takes_all_blocks_of_the_tenant_and_no_others(make_store, monkeypatch):
    monkeypatch.setattr(removal_module, "STEP_BLOCKS", 7)
    async with make_store(disk=16 << 20) as store:
        sessions = {}
        for tenant in ("", "acme"):
            opened = await store.call("OpenSession", client_name="t", tenant=tenant)
            sessions[tenant] = opened.session_id
            keys = store.manager.fold(opened.session_id, make_keys(*range(20)))
            store.put(opened.session_id, keys)
            await store.flush()
            if tenant == "acme":
                store.manager._replicas.lost(HOST, store.host.drop(keys[:5]))
        default = set(make_keys(*range(20)))
        assert await clear(store, sessions["acme"]) == 20
        assert store.sink.held == {HOST: default, DISK: default}
        assert await clear(store, sessions["acme"]) == 0
        assert await clear(store, sessions[""]) == 20
        assert store.sink.held == {HOST: set(), DISK: set()}
        assert store.host.statistics().used_bytes == 0


async def test_others_are_served_while_a_large_tenant_is_cleared(make_store, monkeypatch):
    monkeypatch.setattr(removal_module, "STEP_BLOCKS", 4)
    async with make_store() as store:
        session, keys = store.open(), make_keys(*range(40))
        await store.call("Match", session_id=session, keys=wire(keys))
        store.put(session, keys)
        clearing = asyncio.ensure_future(clear(store, session))
        left = len(keys)
        seen = set()
        while not clearing.done():
            await asyncio.sleep(0)
            left = len(store.host.inventory())
            seen.add(left)
        assert await clearing == 40
        assert len(seen) >= 10, "in steps, with turns for others between"


async def test_a_session_that_is_not_open_removes_nothing(make_store):
    from kvstore.core.errors import SessionExpiredError

    async with make_store() as store:
        keys = make_keys("a")
        store.put(store.open(), keys)
        for method, fields in (("Remove", {"keys": wire(keys)}), ("Clear", {})):
            with pytest.raises(SessionExpiredError):
                await store.call(method, session_id=5, **fields)
        assert store.manager.match(keys) == [HOST]

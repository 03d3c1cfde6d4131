"""Pinned blocks stay in the host tier, within their share, until their time is over."""

from __future__ import annotations

import pytest

from kvstore.node import pins as pins_module
from kvstore.tiers.base import MissReason, ReserveOutcome, TierKind

from .conftest import BLOCK_BYTES, content, make_keys, wire

HOST, DISK = TierKind.HOST, TierKind.DISK
NEVER_STORED, NO_SPACE = MissReason.NEVER_STORED, MissReason.NO_SPACE


async def pin(store, session, keys, ttl_ms=0, wait_ms=5_000):
    response = await store.call(
        "Pin", session_id=session, keys=wire(keys), ttl_ms=ttl_ms, wait_ms=wait_ms
    )
    return list(response.miss_reasons)


async def unpin(store, session, keys):
    return (await store.call("Unpin", session_id=session, keys=wire(keys))).num_unpinned


async def press(store, session, names=range(1_000, 1_200)):
    """Write more than the host tier holds."""
    for name in names:
        store.put(session, make_keys(name))


async def test_a_hard_pin_holds_until_it_is_taken_back(make_store):
    async with make_store(eviction="lru") as store:
        session, keys = store.open(), make_keys("a", "b")
        store.put(session, keys)
        assert await pin(store, session, make_keys("a", "b", "c", "a")) == [0, 0, NEVER_STORED, 0]
        assert store.manager.statistics().pinned_bytes == 2 * BLOCK_BYTES
        store.clock.advance(1_000_000)
        store.manager.tick()
        session = store.open()
        await press(store, session)
        assert store.manager.match(keys) == [HOST, HOST], "survives the session that pinned"
        assert await unpin(store, session, make_keys("a", "c", "a")) == 1
        assert store.manager.statistics().pinned_bytes == BLOCK_BYTES
        await press(store, session, range(2_000, 2_200))
        assert store.manager.match(keys) == []
        assert store.manager.match(make_keys("b")) == [HOST]


async def test_a_soft_pin_ends_by_itself(make_store):
    async with make_store() as store:
        session, keys = store.open(), make_keys("a")
        store.put(session, keys)
        assert await pin(store, session, keys, ttl_ms=5_000) == [0]
        store.clock.advance(4.9)
        store.manager.tick()
        await press(store, session)
        assert store.manager.match(keys) == [HOST]
        store.clock.advance(0.1)
        store.manager.tick()
        assert store.manager.statistics().pinned_bytes == 0
        await press(store, session, range(2_000, 2_200))
        assert store.manager.match(keys) == []


@pytest.mark.parametrize(
    ("first_ms", "second_ms", "pinned_after_s"),
    [(1_000, 0, 100), (0, 1_000, None), (1_000, 9_000, 8), (9_000, 1_000, None)],
)
async def test_pinning_again_changes_kind_and_time(make_store, first_ms, second_ms, pinned_after_s):
    async with make_store(lease_ttl_ms=1_000_000) as store:
        session, keys = store.open(), make_keys("a")
        store.put(session, keys)
        assert await pin(store, session, keys, ttl_ms=first_ms) == [0]
        assert await pin(store, session, keys, ttl_ms=second_ms) == [0]
        store.clock.advance(pinned_after_s or 2)
        store.manager.tick()
        pinned_bytes = BLOCK_BYTES if pinned_after_s else 0
        assert store.manager.statistics().pinned_bytes == pinned_bytes
        assert await unpin(store, session, keys) == bool(pinned_after_s)
        assert store.host.drop(keys)
        assert store.host.statistics().used_bytes == 0, "one reference, given back once"


async def test_pins_are_bounded_by_their_share_of_the_host_tier(make_store):
    async with make_store(host=4 << 20, pin_share=0.25) as store:
        session, keys = store.open(), make_keys(*range(20))
        store.put(session, keys)
        fitting = (1 << 20) // BLOCK_BYTES
        assert await pin(store, session, keys) == [0] * fitting + [NO_SPACE] * (20 - fitting)
        assert store.manager.statistics().pinned_bytes == 1 << 20
        assert await pin(store, session, keys[:2], ttl_ms=5) == [0, 0], "already pinned"
        await unpin(store, session, keys[:1])
        assert await pin(store, session, make_keys(19, 18)) == [0, NO_SPACE]


async def test_a_pinned_block_counts_with_its_slot_whatever_it_holds(make_store):
    from kvstore.core.checksum import checksum
    from kvstore.node.writing import CommittedBlock

    async with make_store(host=4 << 20, pin_share=0.25) as store:
        session, keys = store.open(), make_keys("a")
        reservation, _ = store.reserve(session, keys, 2 << 20)
        store.manager.bulk.land(session, reservation.id, 0, 0, memoryview(b"x"))
        store.manager.commit(session, reservation.id, [CommittedBlock(0, 1, checksum(b"x"))])
        assert await pin(store, session, keys) == [NO_SPACE]


async def test_pinning_brings_blocks_up_from_disk(make_store):
    async with make_store(disk=16 << 20) as store:
        session, keys = store.open(), make_keys("a", "b")
        store.put(session, keys)
        await store.flush()
        store.manager._replicas.lost(HOST, store.host.drop(keys))
        assert await pin(store, session, keys) == [0, 0]
        assert store.manager.match(keys) == [HOST, HOST]
        await press(store, session)
        await store.flush()
        acquired = await store.acquire(session, keys)
        assert acquired.tiers == [HOST, HOST]
        assert store.read(session, acquired.lease, 0) == content(keys.hashes[0])


async def test_a_block_that_is_removed_or_corrupt_loses_its_pin(make_store):
    async with make_store() as store:
        session, keys = store.open(), make_keys("a", "b")
        store.put(session, keys)
        assert await pin(store, session, keys) == [0, 0]
        await store.call("Remove", session_id=session, keys=wire(keys[:1]))
        acquired = await store.acquire(session, keys[1:])
        store.host.view(acquired.lease.residents[0].slot)[5] ^= 1
        assert await store.manager.report(session, acquired.lease.id, [0]) == 1
        assert store.manager.statistics().pinned_bytes == 0
        store.manager.release(session, [acquired.lease.id])
        assert store.host.statistics().used_bytes == 0
        assert store.put(session, keys) == [ReserveOutcome.RESERVED] * 2


async def test_a_tenant_cannot_take_back_the_pins_of_another(make_store):
    async with make_store() as store:
        opened = [
            await store.call("OpenSession", client_name="t", tenant=tenant) for tenant in "ab"
        ]
        a, b = (response.session_id for response in opened)
        keys = make_keys("x")
        store.put(a, store.manager.fold(a, keys))
        assert await pin(store, a, keys) == [0]
        assert await pin(store, b, keys) == [NEVER_STORED]
        assert await unpin(store, b, keys) == 0
        assert await unpin(store, a, keys) == 1


async def test_pinning_again_and_again_leaves_nothing_behind(make_store, monkeypatch):
    monkeypatch.setattr(pins_module, "_STALE_MAX", 8)
    async with make_store() as store:
        session, keys = store.open(), make_keys("a")
        store.put(session, keys)
        for _ in range(100):
            await pin(store, session, keys, ttl_ms=1_000)
        assert len(store.manager._pins._ends) <= 8 + 2
        store.clock.advance(1)
        store.manager.tick()
        assert store.manager.statistics().pinned_bytes == 0

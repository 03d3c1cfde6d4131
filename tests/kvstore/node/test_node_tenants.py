"""Tenants do not see each other's blocks, nor pay with theirs for each other's quota."""

from __future__ import annotations

import pytest

from kvstore.core.errors import (
    ConfigurationError,
    InvalidArgumentError,
    LayoutMismatchError,
    PermissionDeniedError,
    QuotaExceededError,
    ResourceExhaustedError,
)
from kvstore.core.ids import LayoutFingerprint
from kvstore.core.layout import KVLayout
from kvstore.node import tenants as tenants_module
from kvstore.node.tenants import Tenants, fold
from kvstore.tiers.base import MissReason, ReserveOutcome, TierKind

from .conftest import BLOCK_BYTES, content, make_keys, wire

HOST, DISK = TierKind.HOST, TierKind.DISK
RESERVED, EXISTS, OVER_QUOTA = (
    ReserveOutcome.RESERVED,
    ReserveOutcome.EXISTS,
    ReserveOutcome.OVER_QUOTA,
)
LAYOUT = make_keys().layout


def folded(tenant, keys):
    return type(keys)(fold(tenant, keys.layout), keys.hashes)


async def open_as(store, tenant, **fields):
    response = await store.call("OpenSession", client_name="test", tenant=tenant, **fields)
    if not fields:  # the node knows whose a layout is from its first use on
        await store.call("Match", session_id=response.session_id, keys=wire(make_keys("any")))
    return response.session_id


async def put(store, session, tenant, keys):
    """Through the manager, which knows folded keys."""
    return store.put(session, folded(tenant, keys))


def usage_of(store, tenant):
    return next(u for u in store.manager.statistics().tenants if u.tenant == tenant)


def test_folding_is_the_same_everywhere_and_separates_everything():
    assert fold("", LAYOUT) == LAYOUT
    assert fold("acme", LAYOUT).hex() == "b4c3900ed1f74b19e4cd43e183ca0b22", "known to every node"
    names = ["", "a", "b", "ab"]
    layouts = [LAYOUT, LayoutFingerprint(b"b" + LAYOUT[1:]), LayoutFingerprint(bytes(16))]
    results = {fold(name, layout) for name in names for layout in layouts}
    assert len(results) == len(names) * len(layouts)
    assert {len(result) for result in results} == {16}


async def test_the_same_keys_of_two_tenants_are_two_blocks(make_store):
    async with make_store() as store:
        keys = make_keys("a", "b")
        acme, other, default = [await open_as(store, name) for name in ("acme", "other", "")]
        reserved = await store.call(
            "Reserve", session_id=acme, keys=wire(keys), block_bytes=BLOCK_BYTES
        )
        assert list(reserved.outcomes) == [RESERVED, RESERVED]
        store.manager.abort(acme, reserved.reservation_id)
        await put(store, acme, "acme", keys)
        for session, num_matched in ((acme, 2), (other, 0), (default, 0), (0, 0)):
            match = await store.call("Match", session_id=session, keys=wire(keys))
            assert match.num_matched == num_matched
        for session in (other, default):
            acquired = await store.call("Acquire", session_id=session, keys=wire(keys))
            assert list(acquired.miss_reasons) == [MissReason.NEVER_STORED] * 2
            reserved = await store.call(
                "Reserve", session_id=session, keys=wire(keys), block_bytes=BLOCK_BYTES
            )
            assert list(reserved.outcomes) == [RESERVED, RESERVED]
        acquired = await store.call("Acquire", session_id=acme, keys=wire(keys))
        assert list(acquired.tiers) == [HOST, HOST]
        assert store.sink.held[HOST] == set(folded("acme", keys))


async def test_a_peer_reads_every_tenants_blocks_by_their_folded_keys_and_writes_none(make_store):
    async with make_store() as store:
        keys = make_keys("a")
        acme, peer = await open_as(store, "acme"), await open_as(store, "", peer=True)
        await put(store, acme, "acme", keys)
        acquired = await store.call("Acquire", session_id=peer, keys=wire(folded("acme", keys)))
        assert list(acquired.tiers) == [HOST]
        fields = {"session_id": peer, "keys": wire(keys)}
        for method, more in (
            ("Reserve", {"block_bytes": BLOCK_BYTES}),
            ("Pin", {}),
            ("Unpin", {}),
            ("Retain", {}),
            ("Remove", {}),
        ):
            with pytest.raises(PermissionDeniedError, match="peer"):
                await store.call(method, **fields, **more)
        with pytest.raises(PermissionDeniedError, match="peer"):
            await store.call("Clear", session_id=peer)


async def test_the_default_tenant_cannot_name_the_blocks_of_another(make_store):
    async with make_store() as store:
        acme, default = await open_as(store, "acme"), await open_as(store, "")
        keys = make_keys("a")
        await store.call("Match", session_id=acme, keys=wire(keys))
        for session in (default, 0):
            with pytest.raises(PermissionDeniedError, match="layout_fingerprint"):
                await store.call("Match", session_id=session, keys=wire(folded("acme", keys)))


async def test_a_guessed_fingerprint_does_not_lock_its_tenant_out(make_store):
    async with make_store() as store:
        default, keys = await open_as(store, ""), make_keys("a")
        await store.call("Match", session_id=default, keys=wire(folded("acme", keys)))
        acme = await open_as(store, "acme")
        await put(store, acme, "acme", keys)
        assert usage_of(store, "acme").host_bytes == BLOCK_BYTES
        with pytest.raises(PermissionDeniedError, match="layout_fingerprint"):
            await store.call("Match", session_id=default, keys=wire(folded("acme", keys)))


async def test_layouts_are_checked_in_every_tenant(make_store):
    async with make_store() as store:
        layout = KVLayout(2, 2, 8, 16, "float32")
        message = {
            "num_layers": 2,
            "num_kv_heads": 2,
            "head_dim": 8,
            "block_size_tokens": 16,
            "dtype": "float32",
        }
        session = await open_as(store, "acme", layouts=[message])
        keys = wire(type(make_keys("a"))(layout.fingerprint, make_keys("a").hashes))
        with pytest.raises(LayoutMismatchError, match="layout_fingerprint"):
            await store.call(
                "Reserve", session_id=session, keys=wire(make_keys("a")), block_bytes=1
            )
        with pytest.raises(LayoutMismatchError, match="block_bytes"):
            await store.call("Reserve", session_id=session, keys=keys, block_bytes=1)
        reserved = await store.call(
            "Reserve", session_id=session, keys=keys, block_bytes=layout.block_bytes
        )
        assert list(reserved.outcomes) == [RESERVED]


@pytest.mark.parametrize("name", ["*", "a b", "-a", "ä", "a/b", "x" * 65, "a\n", "."])
async def test_what_is_no_name_of_a_tenant_is_refused(make_store, name):
    async with make_store() as store:
        with pytest.raises(InvalidArgumentError, match="tenant"):
            await open_as(store, name)


async def test_a_tenant_at_its_quota_makes_room_from_its_own_blocks(make_store):
    async with make_store(quotas={"acme": 8 * BLOCK_BYTES}) as store:
        acme, other = await open_as(store, "acme"), await open_as(store, "other")
        others = make_keys(*range(10))
        await put(store, other, "other", others)
        for first in range(0, 40, 4):
            names = make_keys(*range(first, first + 4))
            assert await put(store, acme, "acme", names) == [RESERVED] * 4
            assert usage_of(store, "acme").host_bytes <= 8 * BLOCK_BYTES
        assert store.manager.match(folded("acme", make_keys(*range(36, 40)))) == [HOST] * 4
        assert store.manager.match(folded("other", others)) == [HOST] * 10
        assert usage_of(store, "acme").quota_bytes == 8 * BLOCK_BYTES
        assert usage_of(store, "acme").over_quota == 0
        assert usage_of(store, "other").quota_bytes is None
        evicted = folded("acme", make_keys(0))
        assert store.sink.held[HOST].isdisjoint(evicted)
        assert (await store.acquire(acme, evicted)).tiers == [MissReason.EVICTED]


async def test_what_does_not_fit_beside_blocks_in_use_is_over_quota(make_store):
    async with make_store(quotas={"*": 4 * BLOCK_BYTES}) as store:
        acme = await open_as(store, "acme")
        held = folded("acme", make_keys(1, 2, 3))
        store.put(acme, held)
        lease = (await store.acquire(acme, held)).lease
        keys = folded("acme", make_keys(1, 7, 8, 2, 9))
        outcomes = store.put(acme, keys)
        assert outcomes == [EXISTS, RESERVED, OVER_QUOTA, EXISTS, OVER_QUOTA]
        assert usage_of(store, "acme").over_quota == 2
        store.manager.release(acme, [lease.id])
        assert store.put(acme, folded("acme", make_keys(8, 9))) == [RESERVED] * 2
        assert usage_of(store, "acme").host_bytes == 4 * BLOCK_BYTES


async def test_a_chain_that_is_extended_at_the_quota_keeps_its_head(make_store):
    async with make_store(quotas={"acme": 4 * BLOCK_BYTES}) as store:
        acme = await open_as(store, "acme")
        head, chain = make_keys(1, 2, 3), make_keys(1, 2, 3, 4, 5, 6)
        await put(store, acme, "acme", head)
        outcomes = await put(store, acme, "acme", chain)
        assert outcomes == [EXISTS] * 3 + [RESERVED] + [OVER_QUOTA] * 2
        assert store.manager.match(folded("acme", chain)) == [HOST] * 4


async def test_slots_being_written_count_toward_the_quota(make_store):
    async with make_store(quotas={"acme": 4 * BLOCK_BYTES}) as store:
        acme = await open_as(store, "acme")
        _, outcomes = store.reserve(acme, folded("acme", make_keys(1, 2, 3)))
        assert outcomes == [RESERVED] * 3
        _, outcomes = store.reserve(acme, folded("acme", make_keys(4, 5)))
        assert outcomes == [RESERVED, OVER_QUOTA]


async def test_a_block_larger_than_the_quota_is_an_error_that_says_so(make_store):
    async with make_store(quotas={"acme": BLOCK_BYTES - 1}) as store:
        acme = await open_as(store, "acme")
        with pytest.raises(QuotaExceededError, match=r"'acme' is 65535.*node\.quotas"):
            await store.call(
                "Reserve",
                session_id=acme,
                keys=wire(make_keys("a")),
                block_bytes=BLOCK_BYTES,
            )


async def test_blocks_that_come_up_from_disk_stay_within_the_quota(make_store):
    quotas = {"acme": 4 * BLOCK_BYTES}
    async with make_store(disk=16 << 20, quotas=quotas) as store:
        acme = await open_as(store, "acme")
        keys = folded("acme", make_keys(*range(12)))
        for i in range(0, 12, 4):
            store.put(acme, keys[i : i + 4])
            await store.flush()
        assert DISK in store.manager.match(keys)
        acquired = await store.acquire(acme, keys)
        found = [tier for tier in acquired.tiers if isinstance(tier, TierKind)]
        assert len(found) <= 4
        assert found
        assert usage_of(store, "acme").host_bytes <= 4 * BLOCK_BYTES
        for index, key in enumerate(acquired.lease.keys):
            assert store.read(acme, acquired.lease, index) == content(key.hash)


async def test_quotas_that_fit_together_keep_tenants_apart(make_store):
    """8 MiB in all, 90 % below the low watermark: 3 + 3 MiB fit."""
    quotas = {"quiet": 3 << 20, "noisy": 3 << 20}
    async with make_store(host=8 << 20, quotas=quotas) as store:
        quiet, noisy = await open_as(store, "quiet"), await open_as(store, "noisy")
        keys = make_keys(*range(40))
        await put(store, quiet, "quiet", keys)
        for first in range(0, 2_000, 40):
            await put(store, noisy, "noisy", make_keys(*range(first, first + 40)))
            store.manager.tick()
        assert store.manager.match(folded("quiet", keys)) == [HOST] * 40


async def test_statistics_tell_tenants_apart(make_store):
    async with make_store(quotas={"acme": 1 << 20}) as store:
        acme = await open_as(store, "acme")
        await put(store, acme, "acme", make_keys(1, 2))
        await store.call("Match", session_id=acme, keys=wire(make_keys(1)))
        message = await store.call("Statistics")
        (usage,) = [t for t in message.tenants if t.tenant == "acme"]
        assert (usage.host_bytes, usage.quota_bytes) == (2 * BLOCK_BYTES, 1 << 20)


def test_tenants_and_layouts_are_bounded_and_idle_ones_forgotten(monkeypatch):
    monkeypatch.setattr(tenants_module, "MAX_TENANTS", 2)
    monkeypatch.setattr(tenants_module, "MAX_LAYOUTS", 2)
    held = set()
    tenants = Tenants({}, lambda layout: int(layout in held))
    layouts = [LayoutFingerprint(bytes([i]) * 16) for i in range(4)]
    held.add(tenants.enter("a", layouts[0]))
    gone = tenants.enter("a", layouts[1])
    held.add(tenants.enter("a", layouts[2]))
    assert tenants.owner(gone) is None
    with pytest.raises(ResourceExhaustedError, match="layouts"):
        tenants.enter("a", layouts[3])
    tenants.enter("b", layouts[0])
    held.add(tenants.enter("c", layouts[0]))
    assert tenants.owner(fold("b", layouts[0])) is None
    with pytest.raises(ResourceExhaustedError, match="tenant"):
        tenants.enter("d", layouts[0])


@pytest.mark.parametrize(
    ("quotas", "words"),
    [({"a/b": 1 << 20}, "quotas must be"), ({"acme": 0}, "'acme' must have at least one byte")],
)
async def test_quotas_that_make_no_sense_stop_the_node(make_store, quotas, words):
    with pytest.raises(ConfigurationError, match=words):
        async with make_store(quotas=quotas):
            pytest.fail("it must not start")

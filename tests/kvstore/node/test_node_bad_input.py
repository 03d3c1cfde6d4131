"""Whatever a client gets wrong: the error names the field, says what to do, and changes nothing."""

from __future__ import annotations

import pytest

from kvstore.core.errors import (
    InvalidArgumentError,
    LayoutMismatchError,
    LeaseExpiredError,
    ReservationExpiredError,
)
from kvstore.node.validation import MAX_DURATION_MS
from kvstore.tiers.base import MissReason

from .conftest import BLOCK_BYTES, make_keys, wire

KEYS = wire(make_keys("a", "b"))
U64 = (1 << 64) - 1
U32 = (1 << 32) - 1
LAYOUT = {
    "num_layers": 2,
    "num_kv_heads": 2,
    "head_dim": 8,
    "block_size_tokens": 16,
    "dtype": "float32",
}


def bad_keys(fingerprint=b"f" * 16, hashes=b"h" * 32):
    return {"layout_fingerprint": fingerprint, "block_hashes": hashes}


@pytest.mark.parametrize(
    "method", ["Match", "Reserve", "Acquire", "Prefetch", "Pin", "Unpin", "Retain", "Remove"]
)
@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (bad_keys(fingerprint=b""), "layout_fingerprint must have 16 bytes"),
        (bad_keys(fingerprint=b"f" * 17), "layout_fingerprint must have 16 bytes"),
        (bad_keys(hashes=b"h" * 31), "whole 32-byte hashes"),
        (bad_keys(hashes=bytes(32 * 65_537)), "at most 65536 in one call"),
    ],
)
async def test_keys_are_checked_by_every_verb(make_store, method, keys, words):
    async with make_store() as store:
        with pytest.raises(InvalidArgumentError, match=words):
            await store.call(method, session_id=store.open(), keys=keys)


@pytest.mark.parametrize(
    ("method", "fields", "words"),
    [
        ("Pin", {"keys": KEYS, "ttl_ms": U64}, "ttl_ms must be at most"),
        ("Pin", {"keys": KEYS, "ttl_ms": MAX_DURATION_MS + 1}, "0 = without an end"),
        ("Pin", {"keys": KEYS, "wait_ms": U32}, "wait_ms must be at most"),
        ("Confirm", {"lease_id": 1, "wait_ms": U32}, "wait_ms must be at most"),
        ("Acquire", {"keys": KEYS, "wait_ms": U32, "streaming": True}, "wait_ms must be at most"),
        ("Reserve", {"keys": KEYS, "block_bytes": U64}, "block_bytes must lie in"),
        ("Commit", {"indices": range(65_537)}, "one entry for each block"),
        ("Release", {"lease_ids": range(65_537)}, "lease_ids: at most"),
        ("Report", {"indices": range(65_537)}, "indices: at most"),
    ],
)
async def test_numbers_out_of_range_are_named(make_store, method, fields, words):
    async with make_store() as store:
        with pytest.raises(InvalidArgumentError, match=words):
            await store.call(method, session_id=store.open(), **fields)
        assert store.host.statistics().used_bytes == 0


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"layouts": [LAYOUT | {"dtype": "float64"}]}, "dtype must be one of"),
        ({"layouts": [LAYOUT | {"num_kv_heads": 0}]}, "num_kv_heads"),
        ({"layouts": [LAYOUT | {"num_layers": U32, "head_dim": U32}]}, "does not fit this node"),
        ({"layouts": [LAYOUT] * 257}, "layouts: at most 256"),
        ({"tenant": "no/name"}, "tenant must be"),
        ({"tenant": "x" * 100_000}, "tenant must be"),
        ({"peer": True, "tenant": "acme"}, "tenant must be empty for a peer"),
    ],
)
async def test_a_session_with_wrong_fields_is_not_opened(make_store, fields, words):
    async with make_store() as store:
        with pytest.raises(InvalidArgumentError, match=words) as error:
            await store.call("OpenSession", client_name="test", **fields)
        assert len(str(error.value)) < 500
        assert store.manager.statistics().sessions == 0


async def test_a_layout_that_the_session_did_not_name_is_a_mismatch(make_store):
    async with make_store() as store:
        opened = await store.call("OpenSession", client_name="test", layouts=[LAYOUT])
        with pytest.raises(LayoutMismatchError, match=r"keys\.layout_fingerprint"):
            await store.call(
                "Reserve", session_id=opened.session_id, keys=KEYS, block_bytes=BLOCK_BYTES
            )


async def test_unknown_keys_are_misses_and_no_errors(make_store):
    async with make_store() as store:
        session = store.open()
        pinned = await store.call("Pin", session_id=session, keys=KEYS)
        assert list(pinned.miss_reasons) == [MissReason.NEVER_STORED] * 2
        assert (await store.call("Unpin", session_id=session, keys=KEYS)).num_unpinned == 0
        retained = await store.call(
            "Retain", session_id=session, keys=KEYS, retention=[{"last": 2, "priority": 100}]
        )
        assert retained.num_retained == 0
        assert (await store.call("Remove", session_id=session, keys=KEYS)).num_removed == 0


async def test_ids_that_are_not_known_are_named(make_store):
    async with make_store() as store:
        session = store.open()
        with pytest.raises(LeaseExpiredError, match="lease 7"):
            await store.call("Confirm", session_id=session, lease_id=7)
        with pytest.raises(ReservationExpiredError, match="reservation 7"):
            await store.call("Commit", session_id=session, reservation_id=7)


async def test_no_keys_at_all_are_no_error(make_store):
    async with make_store(quotas={"*": 1 << 20}) as store:
        session, none = store.open(), wire(make_keys())
        for method, fields in (
            ("Reserve", {"block_bytes": BLOCK_BYTES}),
            ("Acquire", {"streaming": True}),
            ("Pin", {}),
            ("Unpin", {}),
            ("Retain", {}),
            ("Remove", {}),
        ):
            await store.call(method, session_id=session, keys=none, **fields)
        assert (await store.call("Clear", session_id=session)).num_removed == 0

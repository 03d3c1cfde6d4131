"""What a writer asks to be kept goes last, for the time asked."""

from __future__ import annotations

import pytest

from kvstore.core.checksum import checksum
from kvstore.core.errors import InvalidArgumentError
from kvstore.tiers.base import TierKind

from .conftest import BLOCK_BYTES, content, make_keys, wire

HOST = TierKind.HOST


async def write(store, session, keys, retention=()):
    reserved = await store.call(
        "Reserve",
        session_id=session,
        keys=wire(keys),
        block_bytes=BLOCK_BYTES,
        retention=retention,
    )
    checksums = []
    for index, block_hash in enumerate(keys.hashes):
        data = content(block_hash)
        store.manager.bulk.land(session, reserved.reservation_id, index, 0, memoryview(data))
        checksums.append(checksum(data))
    await store.call(
        "Commit",
        session_id=session,
        reservation_id=reserved.reservation_id,
        indices=range(len(keys)),
        checksums=checksums,
        lengths_bytes=[BLOCK_BYTES] * len(keys),
    )


def part(first, last, priority, duration_ms=0):
    return {"first": first, "last": last, "priority": priority, "duration_ms": duration_ms}


async def press(store, session, first, count=50):
    store.put(session, make_keys(*range(first, first + count)))


async def test_retention_of_a_reservation_counts_from_its_commit(make_store):
    async with make_store() as store:
        session = store.open()
        kept, plain = make_keys("k1", "k2", "x1", "x2"), make_keys("p")
        await write(store, session, kept, [part(0, 2, 90)])
        await write(store, session, plain)
        for first in (0, 100, 200):
            await press(store, session, first)
        assert store.manager.match(kept) == [HOST, HOST]
        assert store.manager.match(plain) == []


async def test_retention_ends_after_its_time(make_store):
    async with make_store() as store:
        session, keys = store.open(), make_keys("a")
        await write(store, session, keys, [part(0, 1, 100, duration_ms=5_000)])
        await press(store, session, 0)
        await press(store, session, 100)
        assert store.manager.match(keys) == [HOST]
        store.clock.advance(5)
        session = store.open()
        for first in (200, 300, 400):
            await press(store, session, first, 63)
        assert store.manager.match(keys) == []


async def test_retain_changes_what_is_here_and_tells_how_much_that_is(make_store):
    async with make_store() as store:
        session, keys = store.open(), make_keys("a", "b", "c")
        await write(store, session, keys[:2])
        retained = await store.call(
            "Retain",
            session_id=session,
            keys=wire(keys),
            retention=[part(1, 3, 80), part(0, 1, 90)],
        )
        assert retained.num_retained == 2
        for first in (0, 100):
            await press(store, session, first)
        assert store.manager.match(keys) == [HOST, HOST]
        await store.call("Retain", session_id=session, keys=wire(keys), retention=[part(0, 3, 0)])
        await press(store, session, 200, 10)
        assert store.manager.match(keys) == []


async def test_the_lowest_priority_goes_first(make_store):
    async with make_store() as store:
        session = store.open()
        low, high = make_keys("low"), make_keys("high")
        await write(store, session, high, [part(0, 1, 36)])
        await press(store, session, 0, 58)
        await write(store, session, low, [part(0, 1, 1)])
        await press(store, session, 100, 10)
        assert store.manager.match(low) == []
        assert store.manager.match(high) == [HOST]


@pytest.mark.parametrize("method", ["Reserve", "Retain"])
@pytest.mark.parametrize(
    ("ranges", "words"),
    [
        ([part(0, 3, 50)], r"\[0, 3\) is no range of the 2 keys"),
        ([part(1, 1, 50)], "is no range"),
        ([part(2, 1, 50)], "is no range"),
        ([part(0, 1, 101)], "priority must lie in 0..100"),
        ([part(0, 1, 50), part(0, 2, 60)], "overlap"),
        ([part(1, 2, 50), part(0, 2, 60)], "overlap"),
        ([part(0, 1, 50, duration_ms=(1 << 64) - 1)], "duration_ms must be at most"),
        ([part(0, 1, 50)] * 1_025, "at most 1024"),
    ],
)
async def test_a_retention_that_makes_no_sense_is_refused_whole(make_store, method, ranges, words):
    async with make_store() as store:
        fields = {"block_bytes": BLOCK_BYTES} if method == "Reserve" else {}
        with pytest.raises(InvalidArgumentError, match=words):
            await store.call(
                method,
                session_id=store.open(),
                keys=wire(make_keys("a", "b")),
                retention=ranges,
                **fields,
            )
        assert store.host.statistics().used_bytes == 0

"""A disk that hangs, or is slow: readers are told LATE in time, everything else goes on, and when
the disk answers again, so does the node."""

from __future__ import annotations

import asyncio

import pytest

from kvstore.node import ending, promotion
from kvstore.node import store as store_module
from kvstore.node.store import DISK_THREADS
from kvstore.tiers.base import MissReason, TierKind

from .conftest import BLOCK_BYTES, Gate, content, make_keys

HOST, DISK = TierKind.HOST, TierKind.DISK
DISK_BYTES = 16 << 20


@pytest.fixture
def stall_s(monkeypatch) -> float:
    monkeypatch.setattr(promotion, "STALL_S", 0.05)
    return 0.05


async def on_disk_only(store, *names):
    session, keys = store.open(), make_keys(*names)
    store.put(session, keys)
    await store.flush()
    store.manager._replicas.lost(HOST, store.host.drop(keys))
    return session, keys


async def called(gate, times):
    async with asyncio.timeout(20):
        while gate.num_calls < times:  # noqa: ASYNC110 - other threads count
            await asyncio.sleep(0.001)


async def answers_again(store, gate):
    (promoter, _) = store.manager._incoming._sources
    gate.open.set()
    async with asyncio.timeout(20):
        while promoter.hangs():  # noqa: ASYNC110 - its loads end
            await asyncio.sleep(0.001)


async def acquire(store, session, keys, wait_s):
    """Tiers, and whether the node gave the answer by itself rather than this test its patience."""
    async with asyncio.timeout(20):
        return (await store.acquire(session, keys, wait_s=wait_s)).tiers


async def test_a_hanging_disk_holds_up_no_thread_of_the_node_and_nobody_for_long(make_store):
    """More loads hang than there are threads for; the host tier serves and takes writes."""
    async with make_store(host=16 << 20, disk=DISK_BYTES) as store:
        waiting = [await on_disk_only(store, f"slow {n}") for n in range(2 * DISK_THREADS)]
        session, resident = store.open(), make_keys("fast")
        store.put(session, resident)
        await store.flush()
        gate = Gate(store.disk, "load")
        ends = await asyncio.gather(
            *(acquire(store, session, keys, 0.05) for session, keys in waiting)
        )
        assert ends == [[MissReason.LATE]] * len(waiting)
        assert await acquire(store, session, resident, 5) == [HOST]
        store.put(session, make_keys("new"))
        assert await acquire(store, session, make_keys("new"), 5) == [HOST]
        gate.open.set()
        for session, keys in waiting:
            assert (await acquire(store, session, keys, 5))[0] in (HOST, DISK)


async def test_a_disk_known_to_hang_is_not_asked_again_until_it_answers(make_store, stall_s):
    async with make_store(disk=DISK_BYTES) as store:
        session, first = await on_disk_only(store, "first")
        _, others = await on_disk_only(store, *range(10))
        gate = Gate(store.disk, "load")
        assert await acquire(store, session, first, 2 * stall_s) == [MissReason.LATE]
        loop = asyncio.get_running_loop()
        began = loop.time()
        for key in range(10):
            assert await acquire(store, session, make_keys(key), 10) == [MissReason.LATE]
        assert loop.time() - began < 10, "none of them waited for its deadline"
        assert gate.num_calls == 1
        await answers_again(store, gate)
        assert await acquire(store, session, first, 5) == [HOST]
        assert await acquire(store, session, others, 5) == [DISK] * 10


async def test_who_joins_a_load_that_hangs_does_not_wait_for_it(make_store, stall_s):
    async with make_store(disk=DISK_BYTES) as store:
        session, keys = await on_disk_only(store, "a")
        gate = Gate(store.disk, "load")
        assert await acquire(store, session, keys, 2 * stall_s) == [MissReason.LATE]
        assert await acquire(store, session, keys, 1000) == [MissReason.LATE]
        assert gate.num_passed == 0
        await answers_again(store, gate)
        assert await acquire(store, session, keys, 5) == [HOST]


@pytest.mark.parametrize("method", ["load", "store"])
async def test_a_disk_that_hangs_does_not_hold_up_the_end(make_store, monkeypatch, caplog, method):
    """Readers are told, one line says so, and when the disk answers after all it is closed."""
    monkeypatch.setattr(ending, "END_S", 0.05)
    monkeypatch.setattr(store_module, "FLUSH_S", 0.05)
    monkeypatch.setattr(store_module, "CLOSE_S", 0.05)
    async with make_store(disk=DISK_BYTES) as store:
        session, keys = await on_disk_only(store, "a", "b")
        gate = Gate(store.disk, method)
        reading = asyncio.ensure_future(store.acquire(session, keys, wait_s=1000))
        if method == "store":
            store.put(session, make_keys("new"))
        await called(gate, 1)
        await store.store.stop()
        assert gate.num_passed == 0
        expected = MissReason.LATE if method == "load" else DISK
        assert (await reading).tiers == [expected] * 2
        (line,) = (r.getMessage() for r in caplog.records if r.levelname == "ERROR")
        assert f"the disk at {store.disk.folder} hangs" in line
        gate.open.set()
        async with asyncio.timeout(20):
            while not store.disk._closed:  # noqa: ASYNC110 - another thread closes it
                await asyncio.sleep(0.001)


async def test_a_long_load_that_makes_progress_is_no_hanging_disk(make_store, stall_s, monkeypatch):
    """Every batch takes a while, all of them longer than the time for a stall."""
    monkeypatch.setattr(promotion, "BATCH_BYTES", BLOCK_BYTES)
    monkeypatch.setattr(promotion, "STALL_S", 1.0)
    async with make_store(disk=DISK_BYTES) as store:
        session, keys = await on_disk_only(store, *range(8))
        gate = Gate(store.disk, "load")
        promoter = store.manager._incoming._sources[0]
        acquiring = asyncio.ensure_future(acquire(store, session, keys, 10))
        await called(gate, DISK_THREADS)
        promoter._progress_s -= 0.9  # almost a stall; then loads end
        gate.open.set()
        assert await acquiring == [DISK] * 8
        assert not promoter.hangs()


async def test_what_a_slow_disk_delivers_late_is_there_for_the_next_reader(make_store):
    async with make_store(disk=DISK_BYTES) as store:
        session, keys = await on_disk_only(store, "a", "b")
        gate = Gate(store.disk, "load")
        assert await acquire(store, session, keys, 0.01) == [MissReason.LATE] * 2
        gate.open.set()
        acquired = await store.acquire(session, keys)
        assert store.read(session, acquired.lease, 1) == content(keys.hashes[1])


async def test_a_disk_that_hangs_while_writing_costs_disk_copies_only(make_store):
    async with make_store(host=4 << 20, disk=DISK_BYTES) as store:
        gate = Gate(store.disk, "store")
        session = store.open()
        for start in range(0, 200, 20):
            keys = make_keys(*range(start, start + 20))
            store.put(session, keys)
            assert HOST in await acquire(store, session, keys[:1], 5)
            await called(gate, 1)
        statistics = store.manager.statistics()
        assert statistics.write_through_skipped > 0
        assert gate.num_calls == 1
        gate.open.set()
        await store.flush()

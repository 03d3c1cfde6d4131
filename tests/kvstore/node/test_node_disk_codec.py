"""A node whose disk tier is lossy: what comes back carries its own length and checksum."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from kvstore.codecs.registry import CODECS
from kvstore.core.checksum import checksum
from kvstore.core.ids import BlockHash, BlockKeys
from kvstore.core.layout import KVLayout
from kvstore.node.writing import CommittedBlock
from kvstore.tiers.base import TierKind

LAYOUT = KVLayout(4, 2, 32, 32, "float32")
HOST, DISK = TierKind.HOST, TierKind.DISK


def make_values(number):
    return np.random.default_rng(number).standard_normal(LAYOUT.shape).astype(np.float32)


def make_keys(count):
    hashes = [BlockHash(number.to_bytes(32, "big")) for number in range(count)]
    return BlockKeys(LAYOUT.fingerprint, hashes)


def put(store, session, keys):
    reservation, _ = store.reserve(session, keys, LAYOUT.block_bytes)
    blocks = []
    for i in range(len(keys)):
        data = memoryview(make_values(i)).cast("B")
        store.manager.bulk.land(session, reservation.id, i, 0, data)
        blocks.append(CommittedBlock(i, len(data), checksum(data)))
    store.manager.commit(session, reservation.id, blocks)


def forget_in_memory(store, keys):
    store.manager._replicas.lost(HOST, store.host.drop(keys))


async def read_all(store, session, keys):
    """Bytes as a reader gets them, checked as a reader would."""
    acquired = await store.acquire(session, keys)
    assert acquired.tiers == [DISK] * len(keys)
    (residents,) = [store.host.acquire(list(keys))]
    store.host.release(list(keys))
    read = []
    for i, resident in enumerate(residents):
        loan = store.manager.bulk.lend(session, acquired.lease.id, [i])
        data = bytes(loan.views[0])
        loan.give_back()
        assert checksum(data) == resident.checksum
        read.append(np.frombuffer(data, np.float32).reshape(LAYOUT.shape))
    return read


@pytest.mark.parametrize("codec", ["fp8", "int8", "int4", "kivi2"])
async def test_blocks_come_back_from_a_lossy_disk_within_the_bound(make_store, codec):
    keys = make_keys(5)
    async with make_store(disk=16 << 20, disk_codec=codec) as store:
        session = store.manager.open_session("test", None, [LAYOUT]).id
        put(store, session, keys)
        await store.flush()
        forget_in_memory(store, keys)
        first = await read_all(store, session, keys)
        for number, values in enumerate(first):
            error = np.abs(values - make_values(number))
            assert np.all(error <= CODECS[codec].error_bound(make_values(number), LAYOUT))
            assert error.max() > 0
        assert store.disk.statistics().used_bytes < 5 * LAYOUT.block_bytes
    async with make_store(disk=16 << 20) as store:  # raw now, and no session has said a layout
        session = store.open()
        again = await read_all(store, session, keys)
        assert all(np.array_equal(a, b) for a, b in zip(again, first, strict=True))


async def test_lossy_is_said_at_start_and_raw_is_not(make_store, caplog):
    with caplog.at_level(logging.WARNING):
        async with make_store(disk=16 << 20):
            assert "disk_codec" not in caplog.text
        async with make_store(disk=16 << 20, disk_codec="int4"):
            assert "disk_codec is int4" in caplog.text

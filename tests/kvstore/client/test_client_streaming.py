"""Reading blocks layer by layer while they are written."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

import kvstore
from kvstore.core.errors import DeadlineExceededError, LeaseExpiredError, ReservationExpiredError
from kvstore.core.ids import BlockHash, BlockKeys
from kvstore.core.layout import KVLayout
from kvstore.core.ranges import BlockRange
from kvstore.tiers.base import MissReason

from .conftest import MAPPED

LAYOUT = KVLayout(num_layers=4, num_kv_heads=2, head_dim=8, block_size_tokens=4, dtype="float16")
KEYS = BlockKeys(LAYOUT.fingerprint, [BlockHash(bytes([i]) * 32) for i in range(2)])
BLOCKS = np.arange(2 * LAYOUT.block_bytes // 2, dtype=np.float16).reshape(2, *LAYOUT.shape)


async def test_a_reader_follows_the_writer_layer_by_layer(make_node, connect):
    node = await make_node()
    got = np.zeros_like(BLOCKS)

    async def read(client):
        async with await client.acquire(KEYS, streaming=True) as lease:
            assert [block.pending for block in lease.found] == [True, True]
            for layer in range(LAYOUT.num_layers):
                await lease.wait_layers(layer + 1, deadline_s=20)
                for block in lease.found:
                    into = got[block.index, layer : layer + 1]
                    part = BlockRange(layers=(layer, layer + 1))
                    lease.copy_part_into(block, LAYOUT, part, into)
            assert await lease.confirm(deadline_s=20) == {}
            for block in lease.found:
                lease.check(block)
            assert lease.prefix_length == 2

    async with connect(node, layouts=[LAYOUT]) as writer, connect(node) as reader:
        async with await writer.reserve(KEYS, LAYOUT.block_bytes) as reservation:
            reading = asyncio.create_task(read(reader))
            for layer in range(LAYOUT.num_layers):
                for block in reservation.blocks:
                    block.numpy(LAYOUT)[layer] = BLOCKS[block.index, layer]
                reservation.layers_ready(layer + 1)
                await asyncio.sleep(0.005)
            await reservation.commit()
        await reading
    assert (got == BLOCKS).all()


@pytest.mark.parametrize("way", MAPPED)
async def test_waiting_ends_with_its_deadline_and_a_commit_makes_every_layer_ready(
    make_node, connect, way
):
    node = await make_node()
    async with connect(node, way, layouts=[LAYOUT]) as client:
        async with await client.reserve(KEYS, LAYOUT.block_bytes) as reservation:
            async with await client.acquire(KEYS, streaming=True) as lease:
                with pytest.raises(DeadlineExceededError):
                    await lease.wait_layers(1, deadline_s=0.05)
                reservation.layers_ready(2, reservation.blocks[0])
                assert [lease.layers_ready(block) for block in lease.found] == [2, 0]
                await reservation.commit()
                await lease.wait_layers(LAYOUT.num_layers, deadline_s=20)
                assert await lease.confirm(deadline_s=20) == {}
            with pytest.raises(ReservationExpiredError):
                reservation.layers_ready(3, reservation.blocks[0])
        async with await client.acquire(KEYS, streaming=True) as lease:
            assert [block.pending for block in lease.found] == [False, False]
            assert min(map(lease.layers_ready, lease.found)) >= LAYOUT.num_layers
            assert await lease.confirm(deadline_s=1) == {}


async def test_a_writer_that_gives_up_leaves_only_misses(make_node, connect):
    node = await make_node()
    async with connect(node, layouts=[LAYOUT]) as client:
        async with await client.reserve(KEYS, LAYOUT.block_bytes) as reservation:
            lease = await client.acquire(KEYS, streaming=True)
            reservation.layers_ready(1)
            await lease.wait_layers(1, deadline_s=20)
            await reservation.commit(reservation.blocks[:1])
        misses = await lease.confirm(deadline_s=20)
        assert list(misses) == [1], "the first was committed"
        assert lease.misses == misses
        with pytest.raises(LeaseExpiredError):
            lease.layers_ready(lease.found[1])
        await lease.release()


async def test_pending_blocks_are_misses_for_whom_does_not_stream(make_node, connect):
    node = await make_node()
    async with (
        connect(node, layouts=[LAYOUT]) as client,
        await client.reserve(KEYS, LAYOUT.block_bytes),
        await client.acquire(KEYS) as lease,
    ):
        assert lease.misses == dict.fromkeys(range(2), MissReason.PENDING)


async def test_without_the_arena_there_is_nothing_to_follow(make_node, connect):
    node = await make_node()
    async with connect(node, "zmq from elsewhere", layouts=[LAYOUT]) as client:
        async with await client.reserve(KEYS, LAYOUT.block_bytes) as reservation:
            for block in reservation.blocks:
                block.numpy(LAYOUT)[:] = BLOCKS[block.index]
            reservation.layers_ready(1)
            await reservation.commit()
        async with await client.acquire(KEYS, streaming=True) as lease:
            await lease.wait_layers(LAYOUT.num_layers, deadline_s=20)
            assert await lease.confirm(deadline_s=20) == {}
            assert (lease.found[1].numpy(LAYOUT) == BLOCKS[1]).all()


def test_the_same_without_await():
    with (
        kvstore.open(host="16MiB", layouts=[LAYOUT]) as store,
        store.reserve(KEYS, LAYOUT.block_bytes) as reservation,
        store.acquire(KEYS, streaming=True) as lease,
    ):
        for block in reservation.blocks:
            block.numpy(LAYOUT)[:] = BLOCKS[block.index]
        reservation.layers_ready(LAYOUT.num_layers)
        lease.wait_layers(LAYOUT.num_layers, deadline_s=20)
        reservation.commit()
        assert lease.confirm(deadline_s=20) == {}
        for block in lease.found:
            assert lease.layers_ready(block) >= LAYOUT.num_layers
            into = np.zeros(LAYOUT.shape, np.float16)
            lease.copy_into(block, into)
            lease.check(block)
            assert (into == BLOCKS[block.index]).all()

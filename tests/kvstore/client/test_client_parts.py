"""Parts of blocks: layers, heads and tokens; and ranks of any number reading what others wrote."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvstore.client.aio import Client
from kvstore.client.sharding import ShardedKeys, get_heads, put_heads
from kvstore.core.errors import InvalidArgumentError, LayoutMismatchError
from kvstore.core.ids import BlockHash, BlockKeys
from kvstore.core.layout import HeadRange, KVLayout
from kvstore.core.ranges import BlockRange
from kvstore.tiers.base import MissReason

from .conftest import WAYS

LAYOUT = KVLayout(num_layers=3, num_kv_heads=8, head_dim=4, block_size_tokens=5, dtype="float16")
COUNT = 3
_numbers = itertools.count()


def fresh_hashes(count: int = COUNT) -> list[BlockHash]:
    """Never used before."""
    return [BlockHash(next(_numbers).to_bytes(32, "little")) for _ in range(count)]


def random_blocks(seed: int, layout: KVLayout = LAYOUT) -> np.ndarray:
    items = np.random.default_rng(seed).integers(0, 1 << 16, (COUNT, *layout.shape), np.uint16)
    return items.view(np.float16)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.tobytes() == b.tobytes()


PARTS = [
    BlockRange(),
    BlockRange(layers=(1, 3)),
    BlockRange(heads=(2, 4)),
    BlockRange(tokens=(0, 1)),
    BlockRange(layers=(0, 1), heads=(7, 8), tokens=(1, 4)),
]


@pytest.mark.parametrize("part", PARTS, ids=repr)
@pytest.mark.parametrize("way", WAYS)
async def test_get_reads_a_part(make_node, connect, way, part):
    node = await make_node()
    blocks, keys = random_blocks(1), BlockKeys(LAYOUT.fingerprint, fresh_hashes())
    async with connect(node, way, layouts=[LAYOUT]) as client:
        await client.put(keys, blocks)
        into = np.zeros((COUNT, *part.shape(LAYOUT)), np.float16)
        assert await client.get(keys, into, part=part) == {}
        for i in range(COUNT):
            assert same(into[i], blocks[i][part.index(LAYOUT)])


@pytest.mark.parametrize("way", ["zmq", "zmq from elsewhere"])
async def test_the_parts_of_a_corrupt_block_are_a_miss_where_everything_is_checked(
    make_node, connect, way
):
    node = await make_node()
    blocks, keys = random_blocks(1), BlockKeys(LAYOUT.fingerprint, fresh_hashes())
    async with connect(node, way, layouts=[LAYOUT], verify="always") as client:
        await client.put(keys, blocks)
        host = node.store._host
        host.view(host.acquire(list(keys))[1].slot)[-1] ^= 1
        host.release(list(keys))
        into = np.zeros((COUNT, 1, *LAYOUT.shape[1:]), np.float16)
        misses = await client.get(keys, into, part=BlockRange(layers=(0, 1)))
        assert misses == {1: MissReason.CORRUPT}, "though its first layer is as it was"


async def test_a_part_needs_its_layout_and_room(make_node, connect):
    node = await make_node()
    keys = BlockKeys(LAYOUT.fingerprint, fresh_hashes(1))
    part = BlockRange(layers=(0, 1))
    into = np.zeros((1, 1, *LAYOUT.shape[1:]), np.float16)
    async with connect(node) as client:
        await client.put(keys, [bytes(100)])
        with pytest.raises(InvalidArgumentError, match="connect with it among `layouts`"):
            await client.get(keys, into, part=part)
        async with await client.acquire(keys) as lease:
            with pytest.raises(LayoutMismatchError, match="has 100"):
                lease.copy_part_into(lease.found[0], LAYOUT, part, into)
            with pytest.raises(InvalidArgumentError, match=r"part\.layers"):
                lease.copy_part_into(lease.found[0], LAYOUT, BlockRange(layers=(0, 4)), into)
            with pytest.raises(InvalidArgumentError, match="into has 3 bytes"):
                lease.copy_part_into(lease.found[0], LAYOUT, part, bytearray(3))
    async with connect(node, layouts=[LAYOUT]) as client:
        with pytest.raises(InvalidArgumentError, match=r"into has shape.*needs \[1, 1, 2, 8, 5"):
            await client.get(keys, np.zeros((1, 2, *LAYOUT.shape[1:]), np.float16), part=part)


def heads_of(blocks: np.ndarray, heads: HeadRange) -> np.ndarray:
    return np.ascontiguousarray(blocks[:, :, :, heads.first : heads.last])


async def write_as(client: Client, keys: ShardedKeys, tp: int, blocks: np.ndarray) -> None:
    for rank in range(tp):
        heads = LAYOUT.heads_of(rank, tp)
        stored = await put_heads(client, keys, heads, heads_of(blocks, heads), deadline_s=10)
        assert stored == list(range(COUNT))


async def check_as(client: Client, keys: ShardedKeys, tp: int, blocks: np.ndarray) -> None:
    for rank in range(tp):
        heads = LAYOUT.heads_of(rank, tp)
        wanted = heads_of(blocks, heads)
        into = np.zeros_like(wanted)
        assert await get_heads(client, keys, heads, into, deadline_s=10) == {}
        assert same(into, wanted)


@pytest.mark.parametrize("way", WAYS)
async def test_what_four_ranks_wrote_is_read_by_any_number_byte_exact(make_node, connect, way):
    node = await make_node()
    keys = ShardedKeys(LAYOUT, 4, fresh_hashes())
    blocks = random_blocks(2)
    async with connect(node, way, layouts=keys.layouts) as client:
        await write_as(client, keys, 4, blocks)
        for tp in (1, 2, 4, 8, 16):
            await check_as(client, keys, tp, blocks)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), seed=st.integers(0, 1 << 30))
async def test_any_degrees_agree(make_node, connect, data, seed):
    num_shards = data.draw(st.sampled_from([1, 2, 4, 8]))
    writers = data.draw(st.sampled_from([n for n in (1, 2, 4, 8) if num_shards % n == 0]))
    first = data.draw(st.integers(0, LAYOUT.num_kv_heads - 1))
    last = data.draw(st.integers(first + 1, LAYOUT.num_kv_heads))
    keys = ShardedKeys(LAYOUT, num_shards, fresh_hashes())
    blocks = random_blocks(seed)
    node = await make_node()
    async with connect(node, layouts=keys.layouts) as client:
        await write_as(client, keys, writers, blocks)
        wanted = heads_of(blocks, HeadRange(first, last))
        into = np.zeros_like(wanted)
        assert await get_heads(client, keys, HeadRange(first, last), into) == {}
        assert same(into, wanted)


async def test_a_block_of_which_a_shard_is_missing_is_missed(make_node, connect):
    node = await make_node()
    keys = ShardedKeys(LAYOUT, 4, fresh_hashes())
    blocks = random_blocks(3)
    async with connect(node, layouts=keys.layouts) as client:
        for rank in (0, 1, 3):
            heads = LAYOUT.heads_of(rank, 4)
            await put_heads(client, keys, heads, heads_of(blocks, heads))
        into = np.zeros_like(blocks)
        every = dict.fromkeys(range(COUNT), MissReason.NEVER_STORED)
        assert await get_heads(client, keys, HeadRange(0, 8), into) == every
        assert await get_heads(client, keys, HeadRange(4, 8), into[:, :, :, :4].copy()) == every
        await check_as(client, ShardedKeys(LAYOUT, 4, []), 1, blocks[:0])
        half = np.zeros_like(heads_of(blocks, HeadRange(0, 4)))
        assert await get_heads(client, keys, HeadRange(0, 4), half) == {}
        assert same(half, heads_of(blocks, HeadRange(0, 4)))


async def test_ranks_that_share_a_head_may_all_write_it(make_node, connect):
    layout = KVLayout(
        num_layers=2, num_kv_heads=2, head_dim=4, block_size_tokens=3, dtype="float16"
    )
    node = await make_node()
    keys = ShardedKeys(layout, 2, fresh_hashes())
    blocks = random_blocks(4, layout)
    async with connect(node, layouts=keys.layouts) as client:
        for rank in range(8):
            heads = layout.heads_of(rank, 8)
            assert await put_heads(client, keys, heads, heads_of(blocks, heads)) == [0, 1, 2]
        into = np.zeros_like(blocks)
        assert await get_heads(client, keys, HeadRange(0, 2), into) == {}
        assert same(into, blocks)


async def test_shards_that_cannot_be_are_refused(make_node, connect):
    node = await make_node()
    keys = ShardedKeys(LAYOUT, 2, fresh_hashes())
    with pytest.raises(InvalidArgumentError, match="num_shards: 3"):
        ShardedKeys(LAYOUT, 3, [])
    async with connect(node, layouts=keys.layouts) as client:
        quarter = heads_of(random_blocks(5), HeadRange(0, 2))
        with pytest.raises(InvalidArgumentError, match="not whole shards"):
            await put_heads(client, keys, HeadRange(0, 2), quarter)
        with pytest.raises(InvalidArgumentError, match="heads:"):
            await get_heads(client, keys, HeadRange(4, 9), quarter)
        with pytest.raises(InvalidArgumentError, match="has shape"):
            await get_heads(client, keys, HeadRange(0, 4), quarter)
        with pytest.raises(LayoutMismatchError, match="4 heads of the layout"):
            await get_heads(client, keys, HeadRange(0, 4), [bytearray(5)] * COUNT)

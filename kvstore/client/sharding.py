"""Blocks that several tensor-parallel ranks write, each its own heads, and ranks of any other
number read.

Every block is kept as `num_shards` shards, each with the same number of KV heads, under a layout of
its own (`KVLayout.shard`). Each is a block like any other: reserved, committed and checked by the
process that wrote it. A pool agrees on `num_shards` as it does on the block size: the largest
number of ranks that will write (at most the number of heads). A rank that holds more heads writes
several shards, and a rank reads its heads from whichever shards hold them, whole or in part.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kvstore.client.aio import Client
from kvstore.client.arrays import as_items
from kvstore.client.buffers import Buffers, Expected, readable, writable
from kvstore.client.copying import Items
from kvstore.client.deadline import Deadline
from kvstore.client.lease import Lease
from kvstore.client.reservation import Reservation
from kvstore.core.errors import InvalidArgumentError, LayoutMismatchError
from kvstore.core.ids import BlockHash, BlockKeys
from kvstore.core.layout import DTYPE_BYTES, HeadRange, KVLayout
from kvstore.core.ranges import BlockRange
from kvstore.tiers.base import MissReason


@dataclass(frozen=True, slots=True)
class ShardPart:
    """Some heads of one shard, and where they belong among the heads asked for."""

    keys: BlockKeys
    layout: KVLayout
    inside: BlockRange
    """Of the shard's heads."""
    place: slice
    """Of the heads asked for."""

    @property
    def is_whole(self) -> bool:
        return self.inside.shape(self.layout) == self.layout.shape


@dataclass(frozen=True)
class ShardedKeys:
    """Keys of blocks that are kept as shards. Raises InvalidArgumentError if `num_shards` does not
    divide the heads of `layout`, which is that of whole blocks."""

    layout: KVLayout
    num_shards: int
    hashes: Sequence[BlockHash]

    def __post_init__(self) -> None:
        if self.num_shards < 1 or self.layout.num_kv_heads % self.num_shards:
            raise InvalidArgumentError(
                f"num_shards: {self.num_shards} does not divide {self.layout.num_kv_heads} KV heads"
            )

    def __len__(self) -> int:
        return len(self.hashes)

    @property
    def layouts(self) -> list[KVLayout]:
        """Of all shards; connect with them."""
        return [self.layout.shard(shard, self.num_shards) for shard in range(self.num_shards)]

    def parts(self, heads: HeadRange) -> list[ShardPart]:
        """The shards that hold `heads`. Raises InvalidArgumentError for heads that are none."""
        if not 0 <= heads.first < heads.last <= self.layout.num_kv_heads:
            raise InvalidArgumentError(
                f"heads: [{heads.first}, {heads.last}) is no range within the "
                f"{self.layout.num_kv_heads} KV heads of the layout"
            )
        size = self.layout.num_kv_heads // self.num_shards
        parts = []
        for shard in range(heads.first // size, -(-heads.last // size)):
            first, last = max(heads.first, shard * size), min(heads.last, (shard + 1) * size)
            layout = self.layout.shard(shard, self.num_shards)
            parts.append(
                ShardPart(
                    BlockKeys(layout.fingerprint, self.hashes),
                    layout,
                    BlockRange(heads=(first - shard * size, last - shard * size)),
                    slice(first - heads.first, last - heads.first),
                )
            )
        return parts

    def expected(self, heads: HeadRange) -> Expected:
        layers, sides, _, tokens, dim = self.layout.shape
        return Expected(self.layout.dtype, (layers, sides, len(heads), tokens, dim))


async def put_heads(
    client: Client,
    keys: ShardedKeys,
    heads: HeadRange,
    blocks: Buffers,
    *,
    deadline_s: float = 1.0,
) -> list[int]:
    """Store the heads of one rank: `blocks` are `[layer, 2, len(heads), token, head_dim]` each.

    Returns the indices of which all shards of `heads` are stored now. Ranks that share heads may
    all write them: the first one does. Raises InvalidArgumentError if `heads` are not whole shards.
    """
    parts = keys.parts(heads)
    if not all(part.is_whole for part in parts):
        raise InvalidArgumentError(
            f"heads: [{heads.first}, {heads.last}) are not whole shards of {keys.num_shards}; "
            "choose num_shards as a multiple of the number of ranks that write"
        )
    data = _arrays(keys, heads, readable("blocks", blocks, len(keys), keys.expected(heads)))
    deadline = Deadline(deadline_s)
    stored = await asyncio.gather(*(_put_part(client, part, data, deadline) for part in parts))
    return sorted(set.intersection(*stored))


async def get_heads(
    client: Client,
    keys: ShardedKeys,
    heads: HeadRange,
    into: Buffers,
    *,
    deadline_s: float = 1.0,
) -> dict[int, MissReason]:
    """Read the heads of one rank, whoever wrote them, into `[layer, 2, len(heads), token,
    head_dim]` each. Returns the misses: blocks of which a shard is missing, and the first reason
    why; all other buffers hold what was written."""
    parts = keys.parts(heads)
    targets = _arrays(keys, heads, writable("into", into, len(keys), keys.expected(heads)))
    deadline = Deadline(deadline_s)
    missed = await asyncio.gather(*(_get_part(client, part, targets, deadline) for part in parts))
    misses: dict[int, MissReason] = {}
    for some in missed:
        misses = some | misses
    return misses


async def _put_part(
    client: Client, part: ShardPart, data: Sequence[Items], deadline: Deadline
) -> set[int]:
    def fill(reservation: Reservation) -> None:
        for block in reservation.blocks:
            np.copyto(as_items(block.view, part.layout), data[block.index][:, :, part.place])

    block_bytes = part.layout.block_bytes
    async with await client.reserve(
        part.keys, block_bytes, deadline_s=deadline.remaining_s()
    ) as reservation:
        await client.run_sized(block_bytes * len(reservation.blocks), fill, reservation)
        await reservation.commit()
    return reservation.stored


async def _get_part(
    client: Client, part: ShardPart, targets: Sequence[Items], deadline: Deadline
) -> dict[int, MissReason]:
    def gather(lease: Lease) -> dict[int, MissReason]:
        return lease.copy_each(
            lease.found,
            lambda block: lease.gather(
                block, part.layout, part.inside, targets[block.index][:, :, part.place]
            ),
        )

    async with await client.acquire(part.keys, deadline_s=deadline.remaining_s()) as lease:
        bad = await client.run_sized(part.layout.block_bytes * len(lease.found), gather, lease)
    return lease.misses | bad


def _arrays(keys: ShardedKeys, heads: HeadRange, views: Sequence[memoryview]) -> list[Items]:
    shape = keys.expected(heads).shape
    dtype = np.dtype(f"u{DTYPE_BYTES[keys.layout.dtype]}")
    length = int(np.prod(shape)) * dtype.itemsize
    for i, view in enumerate(views):
        if view.nbytes != length:
            raise LayoutMismatchError(
                f"buffer {i} has {view.nbytes} bytes, and {len(heads)} heads of the layout have "
                f"{length}; give arrays of shape {list(shape)}"
            )
    return [np.frombuffer(view, dtype).reshape(shape) for view in views]

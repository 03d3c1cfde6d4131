"""From the answer of an Acquire to the blocks that it gives the right to read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import repeat
from operator import add
from typing import Any

from kvstore.client.blocks import FoundBlock
from kvstore.client.deadline import Deadline
from kvstore.client.download import download
from kvstore.client.fencing import LeasedFrom
from kvstore.client.lease import Lease, target_of
from kvstore.core.errors import ProtocolError
from kvstore.tiers.base import MissReason, TierKind
from kvstore.tiers.host.arena import Arena
from kvstore.wire.v1 import node_pb2

_TIERS = {int(tier): tier for tier in TierKind}
_MISSES = {int(miss): miss for miss in MissReason}
"""Several times faster than calls of the classes, once for each block."""

_new_block: Callable[[tuple[Any, ...]], FoundBlock] = partial(tuple.__new__, FoundBlock)


async def lease_of(
    origin: LeasedFrom,
    response: node_pb2.AcquireResponse,
    into: Sequence[memoryview] | None,
    deadline: Deadline,
) -> Lease:
    """`into`: a buffer for each key, for blocks that come over the network; None = the lease makes
    its own. Raises InvalidArgumentError if one is too small, ProtocolError for an answer that is
    none. Blocks that do not come are misses."""
    indices = [index for index, tier in enumerate(response.tiers) if tier]
    misses = {i: _MISSES[miss] for i, miss in enumerate(response.miss_reasons) if miss}
    arena = origin.session.arena
    if arena is not None:
        offsets = response.offsets[:]
        views: Sequence[memoryview] = _mapped(arena, offsets, response.lengths_bytes[:])
        return Lease(origin, indices, offsets, list(_blocks(indices, views, response)), misses)
    lengths_bytes = dict(zip(indices, response.lengths_bytes, strict=True))
    if into is None:
        buffers = [memoryview(bytearray(length)) for length in lengths_bytes.values()]
    else:
        buffers = [target_of(into[i], length) for i, length in lengths_bytes.items()]
    fetched = await _fetched(origin, response, buffers, deadline)
    lost = {i: view for i, view in zip(indices, fetched, strict=True) if type(view) is MissReason}
    found = [
        block
        for block in _blocks(indices, fetched, response)  # type: ignore[arg-type]
        if block.index not in lost
    ]
    return Lease(origin, indices, (), found, misses | lost)


def _blocks(
    indices: Sequence[int], views: Sequence[memoryview], response: node_pb2.AcquireResponse
) -> Iterable[FoundBlock]:
    found_in = response.tiers
    tiers = [_TIERS[found_in[index]] for index in indices]
    pending: Iterable[bool] = map(bool, response.pending) if response.pending else repeat(False)
    columns = (indices, tiers, views, response.checksums[:], response.generations[:])
    if len({len(column) for column in columns}) != 1:
        raise ProtocolError("the node's answer to Acquire lacks columns; update it")
    return map(_new_block, zip(*columns, pending, strict=False))


def _mapped(
    arena: Arena, offsets: Sequence[int], lengths_bytes: Sequence[int]
) -> Sequence[memoryview]:
    """Read-only memory of each block. One slice a block, for whole batches. Both are lists: to
    walk a field of a message takes several times as long."""
    if not offsets:
        return []
    base, capacity_bytes = arena.data_offset, arena.capacity_bytes
    starts = [offset - base for offset in offsets]
    ends = list(map(add, starts, lengths_bytes))
    if len(starts) != len(lengths_bytes) or min(starts) < 0 or max(ends) > capacity_bytes:
        raise ProtocolError("the node named memory outside of its arena")
    memory = arena.view(base, capacity_bytes).toreadonly()
    return list(map(memory.__getitem__, map(slice, starts, ends)))


async def _fetched(
    origin: LeasedFrom,
    response: node_pb2.AcquireResponse,
    buffers: Sequence[memoryview],
    deadline: Deadline,
) -> Sequence[memoryview | MissReason]:
    """Copies that came over the network, verified."""
    if not buffers:
        return []
    assert origin.session.bulk is not None
    return await download(
        origin.session.bulk,
        origin.session.id,
        response.lease_id,
        buffers,
        response.checksums,
        deadline,
    )

"""Between blocks of the store, `[layer][k|v][kv_head][token][head_dim]`, and a `DynamicCache`,
which has a K and a V `[row][kv_head][token][head_dim]` for each layer."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from kvstore.client.arrays import as_items
from kvstore.client.blocks import FoundBlock, ReservedBlock
from kvstore.client.copying import Items
from kvstore.client.huggingface.model import ModelKV, layers_of
from kvstore.client.sync import SyncClient, SyncLease
from kvstore.core.errors import ChecksumError, LeaseExpiredError
from kvstore.core.ids import BlockHash, BlockKeys
from kvstore.core.layout import KVLayout
from kvstore.tiers.base import TierKind


@dataclass(frozen=True, slots=True)
class Prefix:
    """The leading tokens of a batch of prompts, and where they came from."""

    cache: DynamicCache
    tiers: Sequence[TierKind] = ()
    """Of each block, row after row; as many for every row."""


def load_prefix(
    client: SyncClient, kv: ModelKV, rows: Sequence[Sequence[BlockHash]], deadline_s: float
) -> Prefix:
    """The longest prefix of whole blocks that the store has of all rows. Each block is copied once,
    out of the store's memory, and its checksum is verified. Raises KVStoreError."""
    hashes = list(dict.fromkeys(_flat(rows)))
    if not hashes:
        return Prefix(DynamicCache())
    keys = BlockKeys(kv.layout.fingerprint, hashes)
    with client.acquire(keys, deadline_s=deadline_s) as lease:
        found = {hashes[block.index]: block for block in lease.found}
        leading = min(_num_leading(row, found.keys()) for row in rows)
        wanted = [[found[block_hash] for block_hash in row[:leading]] for row in rows]
        memory = _copied(wanted, kv.layout)
        trusted = min(_num_trusted(lease, row) for row in wanted)
    tiers = [block.tier for row in wanted for block in row[:trusted]]
    return Prefix(_cache(memory, trusted * kv.layout.block_size_tokens, kv), tiers)


def save_blocks(
    client: SyncClient,
    layout: KVLayout,
    cache: DynamicCache,
    rows: Sequence[Sequence[BlockHash]],
    first_block: int,
    deadline_s: float,
) -> int:
    """Store the blocks [first_block, len(row)) of each row of `cache` that the store lacks; returns
    how many these were. Raises KVStoreError; what was not committed is nowhere then."""
    places = {
        block_hash: (row, number)
        for row, hashes in enumerate(rows)
        for number, block_hash in enumerate(hashes[first_block:], first_block)
    }
    if not places:
        return 0
    keys = BlockKeys(layout.fingerprint, list(places))
    with client.reserve(keys, layout.block_bytes, deadline_s=deadline_s) as reservation:
        targets = list(places.values())
        sources = _sources(cache, first_block * layout.block_size_tokens)
        for block in reservation.blocks:
            row, number = targets[block.index]
            start = (number - first_block) * layout.block_size_tokens
            _write(block, layout, [kv[row, :, start:] for kv in sources])
        saved = len(reservation.blocks)
        reservation.commit()
    return saved


def _flat(rows: Sequence[Sequence[BlockHash]]) -> Iterator[BlockHash]:
    return (block_hash for row in rows for block_hash in row)


def _num_leading(row: Sequence[BlockHash], found: Collection[BlockHash]) -> int:
    return next((i for i, block_hash in enumerate(row) if block_hash not in found), len(row))


def _copied(rows: Sequence[Sequence[FoundBlock]], layout: KVLayout) -> torch.Tensor:
    """`[layer, k|v, row, kv_head, token, head_dim]`, on the CPU."""
    layers, _, heads, size, head_dim = layout.shape
    shape = (layers, 2, len(rows), heads, len(rows[0]) * size, head_dim)
    memory = torch.empty(shape, dtype=getattr(torch, layout.dtype))
    target = _bits(memory)
    for row, blocks in enumerate(rows):
        for number, block in enumerate(blocks):
            tokens = slice(number * size, (number + 1) * size)
            np.copyto(target[:, :, row, :, tokens], as_items(block.view, layout))
    return memory


def _num_trusted(lease: SyncLease, blocks: Sequence[FoundBlock]) -> int:
    """How many leading blocks were right all the while that they were copied.

    The bytes of a generation never change, so that a right checksum now and an unchanged generation
    after it prove what was copied before.
    """
    for number, block in enumerate(blocks):
        try:
            lease.check(block)
        except (ChecksumError, LeaseExpiredError):
            return number
    return len(blocks)


def _cache(memory: torch.Tensor, num_tokens: int, kv: ModelKV) -> DynamicCache:
    """Layers that keep all tokens, whatever their window: masks do what windows need, and blocks
    need the rest."""
    cache = DynamicCache()
    if num_tokens:
        for both, device in zip(memory[:, :, :, :, :num_tokens], kv.devices, strict=True):
            keys, values = both.to(device)
            layer = DynamicLayer()  # type: ignore[no-untyped-call]
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values
            cache.layers.append(layer)
    return cache


def _sources(cache: DynamicCache, first_token: int) -> list[Items]:
    """K and V of each layer from `first_token` on, on the CPU."""
    tensors = [kv for layer in layers_of(cache) for kv in (layer.keys, layer.values)]
    return [_bits(kv.detach()[:, :, first_token:].cpu()) for kv in tensors]


def _write(block: ReservedBlock, layout: KVLayout, parts: Sequence[Items]) -> None:
    """`parts`: for each layer K and V, `[kv_head, token, head_dim]`, that begin with the block."""
    target = as_items(block.view, layout)
    for i, part in enumerate(parts):
        np.copyto(target[i // 2, i % 2], part[:, : layout.block_size_tokens])


def _bits(tensor: torch.Tensor) -> Items:
    """Over the same memory. numpy knows no bfloat16; and its copies, which release the GIL, are one
    memcpy a row: those of torch share each block out to threads, and wait for the last of them."""
    kind = {2: torch.int16, 4: torch.int32}[tensor.element_size()]
    array = tensor.view(kind).numpy()
    return array.view(f"u{tensor.element_size()}")

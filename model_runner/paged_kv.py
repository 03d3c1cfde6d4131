"""A device cache as the layers of a model write and read it.

The cache is seen as flat rows, each layer from its own first row on: what a step works out once,
for the rows of layer 0, serves all layers.

```
 cache    [block 0: layer 0 | layer 1 | ...][block 1: layer 0 | layer 1 | ...]  ...
 layer 0   ^0 ...                            ^rows of a block
 layer 1             ^0 ...                            ^the same number
```
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from kvstore.core.layout import KVLayout
from kvstore.tiers.device.cache import DeviceCache

_GATHER_BYTES_CPU = 8 << 20
"""What was gathered is still in the last-level cache when attention reads it."""
_GATHER_BYTES = 256 << 20
"""Elsewhere: few launches, and little memory beside the cache."""


def gather_bytes_max(device: torch.device) -> int:
    """How much of a layer's keys and values to gather at a time."""
    return _GATHER_BYTES_CPU if device.type == "cpu" else _GATHER_BYTES


def block_rows(layout: KVLayout, blocks: torch.Tensor) -> torch.Tensor:
    """Rows of `[token, head_dim]`: `[sequence, block]` -> `[k|v, sequence, kv_head, block]`."""
    heads = torch.arange(layout.num_kv_heads, device=blocks.device)[:, None]
    keys = blocks[:, None, :] * (layout.num_layers * 2 * layout.num_kv_heads) + heads
    return torch.stack((keys, keys + layout.num_kv_heads))


@dataclass(frozen=True, slots=True)
class Slots:
    """Where the KV of new tokens goes: rows of `[head_dim]`."""

    keys: torch.Tensor
    """`[token, kv_head]`."""
    values: torch.Tensor


def token_slots(layout: KVLayout, blocks: torch.Tensor, offsets: torch.Tensor) -> Slots:
    """Of the block of each token, and its place there: `[token]` each."""
    size, num_heads = layout.block_size_tokens, layout.num_kv_heads
    heads = torch.arange(num_heads, device=blocks.device) * size
    keys = (blocks * (layout.num_layers * 2 * num_heads * size) + offsets)[:, None] + heads
    return Slots(keys, keys + num_heads * size)


class PagedKV:
    """Reads and writes the KV of one device cache, layer by layer. One thread.

    Memory: a buffer of the largest `read` so far, rounded up to a power of two. It is kept, as
    fresh memory costs more than what is copied into it.
    """

    def __init__(self, cache: DeviceCache) -> None:
        layout = cache.layout
        self._cache = cache
        self._head_dim = layout.head_dim
        heads = 2 * layout.num_kv_heads
        by_block = cache.tensor.view(-1, layout.block_size_tokens * layout.head_dim)
        by_token = cache.tensor.view(-1, layout.head_dim)
        layers = range(layout.num_layers)
        self._blocks = [by_block[n * heads :] for n in layers]
        self._tokens = [by_token[n * heads * layout.block_size_tokens :] for n in layers]
        self._buffer = cache.tensor.new_empty(0)

    def clear(self, blocks: torch.Tensor) -> None:
        """Fill blocks with zeros."""
        self._cache.tensor.index_fill_(0, blocks, 0)

    def write(self, layer: int, slots: Slots, keys: torch.Tensor, values: torch.Tensor) -> None:
        """`[token, kv_head, head_dim]` each."""
        self._tokens[layer].index_put_((slots.keys,), keys)
        self._tokens[layer].index_put_((slots.values,), values)

    def read(self, layer: int, rows: torch.Tensor) -> torch.Tensor:
        """`[k|v, sequence, kv_head, token, head_dim]` from what `block_rows` gave. Valid
        until the next `read`."""
        blocks = self._blocks[layer]
        into = self._room(rows.numel() * blocks.shape[1]).view(-1, blocks.shape[1])
        torch.index_select(blocks, 0, rows.view(-1), out=into)
        return into.view(*rows.shape[:3], -1, self._head_dim)

    def _room(self, numel: int) -> torch.Tensor:
        if len(self._buffer) < numel:
            self._buffer = self._buffer.new_empty(1 << math.ceil(math.log2(numel)))
        return self._buffer[:numel]

"""A part of a block: some of its layers, heads and tokens."""

from __future__ import annotations

from dataclasses import dataclass

from kvstore.core.errors import InvalidArgumentError
from kvstore.core.layout import DTYPE_BYTES, KVLayout


@dataclass(frozen=True, slots=True)
class BlockRange:
    """Half-open ranges [first, last); None = all. What is read with one has the shape
    `[layers][k|v][heads][tokens][head_dim]` of the ranges' lengths, contiguous."""

    layers: tuple[int, int] | None = None
    heads: tuple[int, int] | None = None
    """Counted in the block: in a shard, its own first head is 0."""
    tokens: tuple[int, int] | None = None

    def index(self, layout: KVLayout) -> tuple[slice, slice, slice, slice]:
        """For an array of `layout.shape`. Raises InvalidArgumentError for what is outside of it."""
        return (
            _slice("layers", self.layers, layout.num_layers),
            slice(0, 2),
            _slice("heads", self.heads, layout.num_kv_heads),
            _slice("tokens", self.tokens, layout.block_size_tokens),
        )

    def shape(self, layout: KVLayout) -> tuple[int, int, int, int, int]:
        """Raises InvalidArgumentError."""
        layers, sides, heads, tokens = (part.stop - part.start for part in self.index(layout))
        return (layers, sides, heads, tokens, layout.head_dim)

    def length_bytes(self, layout: KVLayout) -> int:
        """Raises InvalidArgumentError."""
        layers, sides, heads, tokens, dim = self.shape(layout)
        return layers * sides * heads * tokens * dim * DTYPE_BYTES[layout.dtype]


def _slice(name: str, part: tuple[int, int] | None, size: int) -> slice:
    first, last = part or (0, size)
    if not 0 <= first < last <= size:
        raise InvalidArgumentError(
            f"part.{name}: [{first}, {last}) is no range within the {size} of the layout"
        )
    return slice(first, last)

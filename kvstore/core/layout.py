"""The shape of a block, in memory and on the wire: `[layer][k|v][kv_head][token][head_dim]`.

A range of layers is one contiguous byte range; a tensor-parallel rank (a range of heads) is a
strided one. The layout knows no topology, so that any rank can read what any other wrote.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

from kvstore.core.encoding import encode_fields
from kvstore.core.errors import InvalidArgumentError
from kvstore.core.ids import FINGERPRINT_BYTES, LayoutFingerprint

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class KVLayout:
    """Shape, type and byte order (little endian) of one block.

    Raises InvalidArgumentError if a field is not positive or the dtype is unknown.
    """

    num_layers: int
    num_kv_heads: int
    head_dim: int
    block_size_tokens: int
    dtype: str

    def __post_init__(self) -> None:
        for name in ("num_layers", "num_kv_heads", "head_dim", "block_size_tokens"):
            if getattr(self, name) < 1:
                raise InvalidArgumentError(
                    f"KV layout: {name} must be at least 1, got {getattr(self, name)}"
                )
        if self.dtype not in DTYPE_BYTES:
            raise InvalidArgumentError(
                f"KV layout: dtype must be one of {sorted(DTYPE_BYTES)}, got {self.dtype!r}"
            )

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        return (self.num_layers, 2, self.num_kv_heads, self.block_size_tokens, self.head_dim)

    @cached_property
    def layer_bytes(self) -> int:
        """Bytes of the K and V of one layer of one block."""
        return (
            2 * self.num_kv_heads * self.block_size_tokens * self.head_dim * DTYPE_BYTES[self.dtype]
        )

    @cached_property
    def block_bytes(self) -> int:
        return self.num_layers * self.layer_bytes

    @property
    def token_bytes(self) -> int:
        """Bytes of KV that one token adds, over all layers."""
        return self.block_bytes // self.block_size_tokens

    def layer_range(self, first: int, last: int) -> tuple[int, int]:
        """(offset, length) in bytes of layers [first, last) inside a block."""
        assert 0 <= first < last <= self.num_layers
        return first * self.layer_bytes, (last - first) * self.layer_bytes

    @cached_property
    def fingerprint(self) -> LayoutFingerprint:
        fields = encode_fields("kvstore.layout.v1", *self.shape, self.dtype, "little")
        return LayoutFingerprint(hashlib.sha256(fields).digest()[:FINGERPRINT_BYTES])

"""The shape of a block, in memory and on the wire: `[layer][k|v][kv_head][token][head_dim]`.

A range of layers is one contiguous byte range; a tensor-parallel rank (a range of heads) is a
strided one. The layout knows no topology, so that any rank can read what any other wrote.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

from kvstore.core.encoding import encode_fields
from kvstore.core.errors import InvalidArgumentError
from kvstore.core.ids import FINGERPRINT_BYTES, LayoutFingerprint

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class HeadRange:
    """KV heads [first, last) of a model."""

    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first


@dataclass(frozen=True)
class KVLayout:
    """Shape, type and byte order (little endian) of one block.

    Raises InvalidArgumentError if a field is not positive, the dtype is unknown, the heads are none
    of the model's, or the layers are not `num_layers` in increasing order.
    """

    num_layers: int
    num_kv_heads: int
    head_dim: int
    block_size_tokens: int
    dtype: str
    first_kv_head: int = 0
    """Which of the model's KV heads is the first one here."""
    total_kv_heads: int | None = None
    """How many the model has; None = those here are all, as in every block that is not a shard."""
    layers: tuple[int, ...] | None = None
    """Which of the model's layers are here; None = all. Layers that keep the KV of other tokens
    than the rest do (a sliding window) have blocks of their own: two such groups may be alike in
    all other fields."""

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
        last = self.first_kv_head + self.num_kv_heads
        if self.first_kv_head < 0 or last > (self.total_kv_heads or self.num_kv_heads):
            raise InvalidArgumentError(
                f"KV layout: first_kv_head must be such that heads [{self.first_kv_head}, {last}) "
                f"are among the {self.total_kv_heads or self.num_kv_heads} of total_kv_heads"
            )
        self._check_layers()

    def _check_layers(self) -> None:
        if self.layers is None:
            return
        increasing = all(a < b for a, b in pairwise((-1, *self.layers)))
        if len(self.layers) != self.num_layers or not increasing:
            raise InvalidArgumentError(
                f"KV layout: layers must be {self.num_layers} of the model's, in increasing order, "
                f"got {self.layers}"
            )

    @property
    def is_shard(self) -> bool:
        """Whether a block holds some of the model's heads only."""
        return self.num_kv_heads < (self.total_kv_heads or self.num_kv_heads)

    def heads_of(self, rank: int, tp: int) -> HeadRange:
        """The heads that tensor-parallel rank `rank` of `tp` computes with.

        Where `tp` is larger than the number of heads (GQA, MQA), several ranks share a head.
        Raises InvalidArgumentError if one of the two numbers does not divide the other.
        """
        heads = self.num_kv_heads
        if not 0 <= rank < tp:
            raise InvalidArgumentError(f"rank must lie in [0, tp), got rank {rank} of tp {tp}")
        if heads % tp and tp % heads:
            raise InvalidArgumentError(
                f"tp: {tp} ranks cannot share {heads} KV heads evenly; choose a divisor or a "
                "multiple of the number of heads"
            )
        first = rank * heads // tp
        return HeadRange(first, first + max(heads // tp, 1))

    def shard(self, rank: int, tp: int) -> KVLayout:
        """The layout of a block that holds the heads of one rank only; itself for tp = 1.

        It depends on the heads alone: ranks that share a head have one shard layout, and a half of
        a model's heads is the same shard whoever computed it. Raises InvalidArgumentError.
        """
        if self.is_shard:
            raise InvalidArgumentError("shard: this layout is a shard; take shards of the whole")
        heads = self.heads_of(rank, tp)
        if len(heads) == self.num_kv_heads:
            return self
        return replace(
            self,
            num_kv_heads=len(heads),
            first_kv_head=heads.first,
            total_kv_heads=self.num_kv_heads,
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
        if self.is_shard:
            assert self.total_kv_heads is not None
            fields = encode_fields(
                "kvstore.layout.shard.v1", fields, self.first_kv_head, self.total_kv_heads
            )
        if self.layers is not None:
            fields = encode_fields("kvstore.layout.layers.v1", fields, *self.layers)
        return LayoutFingerprint(hashlib.sha256(fields).digest()[:FINGERPRINT_BYTES])

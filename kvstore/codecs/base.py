"""What every codec does: makes the KV of a block smaller, and says how far off it comes back."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from kvstore.core.layout import KVLayout

CodecName = Literal["raw", "fp8", "int8", "int4", "kivi2"]

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Halves = NDArray[np.float16]
AnyArray = NDArray[Any]


class CodecId(IntEnum):
    """As written in the header of an encoded block. Never given another meaning."""

    RAW = 0
    FP8 = 1
    INT8 = 2
    INT4 = 3
    KIVI2 = 4


@dataclass(frozen=True, slots=True)
class Groups:
    """How many values share one scale; 0 where a codec does not group along that axis."""

    channels: int
    tokens: int
    residual_tokens: int
    """At the end of a block, kept in full precision."""


class Codec(Protocol):
    """Turns layers of a block into fewer bytes and back.

    Stateless and thread-safe; work is vectorised and releases the GIL. `values` are float32 of
    shape `[layer][k|v][kv_head][token][head_dim]`, some consecutive layers of one block; `encoded`
    is `[layer][layer_bytes]`. Every layer carries its own scales, so that it can be decoded alone.
    Decoding the same bytes gives the same bits on every machine: it is additions and
    multiplications in a fixed order.
    """

    name: CodecName
    id: CodecId

    def groups(self, layout: KVLayout) -> Groups: ...

    def layer_bytes(self, layout: KVLayout) -> int:
        """Of one encoded layer; it does not depend on the values."""

    def encode(self, values: Floats, layout: KVLayout, encoded: Bytes) -> bool:
        """Fill `encoded`. False, with undefined content, if the values are none that the error
        bound can be held for: not finite, or of a magnitude outside 2**-80 to 2**100."""

    def decode(self, encoded: Bytes, layout: KVLayout) -> Floats:
        """Inverse of `encode`, within the error bound. Raises ProtocolError for bytes that `encode`
        did not write, as far as that can be seen."""

    def error_bound(self, values: Floats, layout: KVLayout) -> Floats:
        """The largest |decoded - value| there can be, for each value (of a shape that broadcasts
        to theirs), for values that `encode` accepts; rounding to `layout.dtype` included."""

"""No codec: bytes as they are."""

from __future__ import annotations

import numpy as np

from kvstore.codecs.base import Bytes, CodecId, CodecName, Floats, Groups
from kvstore.codecs.dtypes import STORAGE, from_float32, to_float32
from kvstore.core.layout import KVLayout


class Raw:
    """Byte-exact. `kvstore.codecs.frame` copies a raw payload without asking this class; it is here
    so that whatever takes a codec takes this one too."""

    name: CodecName = "raw"
    id = CodecId.RAW

    def groups(self, layout: KVLayout) -> Groups:
        return Groups(channels=0, tokens=0, residual_tokens=0)

    def layer_bytes(self, layout: KVLayout) -> int:
        return layout.layer_bytes

    def encode(self, values: Floats, layout: KVLayout, encoded: Bytes) -> bool:
        stored = from_float32(values.copy(), layout.dtype)
        encoded[:] = stored.reshape(len(values), -1).view(np.uint8)
        return True

    def decode(self, encoded: Bytes, layout: KVLayout) -> Floats:
        stored = np.ascontiguousarray(encoded).view(STORAGE[layout.dtype])
        return to_float32(stored, layout.dtype).reshape(len(encoded), *layout.shape[1:]).copy()

    def error_bound(self, values: Floats, layout: KVLayout) -> Floats:
        return np.zeros_like(values)

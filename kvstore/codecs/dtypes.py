"""Between the dtypes of a layout and float32. numpy has no bfloat16: it is the upper half of a
float32, and handled as such."""

from __future__ import annotations

import numpy as np

from kvstore.codecs.base import AnyArray, Floats

STORAGE = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}
"""numpy type that values of a dtype are kept in."""
_ROUNDING = {"float32": (2.0**-24, 2.0**-150), "bfloat16": (2.0**-8, 2.0**-134)}
_ROUNDING["float16"] = (2.0**-11, 2.0**-25)


def to_float32(stored: AnyArray, dtype: str) -> Floats:
    """Exact."""
    if dtype != "bfloat16":
        return stored.astype(np.float32, copy=False)
    wide = stored.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


def from_float32(values: Floats, dtype: str) -> AnyArray:
    """Nearest, ties to even; exact for what `to_float32` gave. Finite values stay finite as long as
    they are below 2**127. May overwrite `values`."""
    if dtype == "float32":
        return values
    if dtype == "float16":
        largest = np.float32(np.finfo(np.float16).max)
        return np.clip(values, -largest, largest, out=values).astype(np.float16)
    bits = values.view(np.uint32)
    rounded = bits >> 16
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    return rounded.astype(np.uint16)


def rounding_error(magnitude: Floats, dtype: str) -> Floats:
    """The most that rounding a value of that magnitude to `dtype` changes it."""
    relative, absolute = _ROUNDING[dtype]
    error: Floats = np.maximum(magnitude * np.float32(relative), np.float32(absolute))
    return error

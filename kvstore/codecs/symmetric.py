"""One scale for each token of each head: INT8 and FP8.

A layer is  unit │ scales[k|v][kv_head][token] │ codes[k|v][kv_head][token][head_dim].
"""

from __future__ import annotations

import numpy as np

from kvstore.codecs.base import Bytes, CodecId, CodecName, Floats, Groups
from kvstore.codecs.dtypes import rounding_error
from kvstore.codecs.scaling import (
    HALF_BYTES,
    HALF_ROUNDED,
    SLACK,
    UNIT_BYTES,
    choose_units,
    inverse,
    read_halves,
    read_units,
    round_up_half,
    split,
    write_halves,
)
from kvstore.core.layout import KVLayout


class _Symmetric:
    """Values of a row (one token of one head) become codes of one byte; the largest magnitude of
    the row becomes the largest code."""

    largest_code: float

    def groups(self, layout: KVLayout) -> Groups:
        return Groups(channels=layout.head_dim, tokens=0, residual_tokens=0)

    def layer_bytes(self, layout: KVLayout) -> int:
        return sum(_sizes(layout))

    def encode(self, values: Floats, layout: KVLayout, encoded: Bytes) -> bool:
        rows = values.reshape(len(values), -1, layout.head_dim)
        largest = np.abs(rows).max(2)
        units = choose_units(largest.max(1))
        if units is None:
            return False
        unit = units.values(1)
        scales = round_up_half(largest / (np.float32(self.largest_code) * unit))
        unit_field, scale_field, code_field = split(encoded, *_sizes(layout))
        units.write(unit_field)
        write_halves(scales, scale_field)
        scaled = rows * inverse(scales.astype(np.float32) * unit)[:, :, None]
        code_field[:] = self._to_codes(scaled).reshape(len(values), -1)
        return True

    def decode(self, encoded: Bytes, layout: KVLayout) -> Floats:
        unit_field, scale_field, code_field = split(encoded, *_sizes(layout))
        scales = read_halves(scale_field) * read_units(unit_field).values(1)
        rows = self._from_codes(code_field.reshape(len(encoded), -1, layout.head_dim))
        rows *= scales[:, :, None]
        values: Floats = rows.reshape(len(encoded), *layout.shape[1:])
        return values

    def error_bound(self, values: Floats, layout: KVLayout) -> Floats:
        magnitude = np.abs(values)
        largest = magnitude.max(-1, keepdims=True)
        layer = magnitude.max((1, 2, 3, 4), keepdims=True)
        scale = largest / np.float32(self.largest_code) * HALF_ROUNDED
        scale += layer * np.float32(2.0**-38)  # the step of the smallest float16, in units
        error: Floats = self._code_error(magnitude, scale) + SLACK * largest
        return error + rounding_error(largest * np.float32(1.01), layout.dtype)

    def _to_codes(self, scaled: Floats) -> Bytes:
        raise NotImplementedError

    def _from_codes(self, codes: Bytes) -> Floats:
        raise NotImplementedError

    def _code_error(self, magnitude: Floats, scale: Floats) -> Floats:
        raise NotImplementedError


class Int8(_Symmetric):
    """Largest error: 1/254 of the largest magnitude of the row."""

    name: CodecName = "int8"
    id = CodecId.INT8
    largest_code = 127.0

    def _to_codes(self, scaled: Floats) -> Bytes:
        return np.rint(scaled, out=scaled).astype(np.int8).view(np.uint8)

    def _from_codes(self, codes: Bytes) -> Floats:
        return codes.view(np.int8).astype(np.float32)

    def _code_error(self, magnitude: Floats, scale: Floats) -> Floats:
        return scale * np.float32(0.5)


class Fp8(_Symmetric):
    """OCP E4M3 (finite, one NaN): relative error 1/16 of each value, down to 1/458,752 of the
    largest magnitude of the row."""

    name: CodecName = "fp8"
    id = CodecId.FP8
    largest_code = 448.0

    def _to_codes(self, scaled: Floats) -> Bytes:
        bits = scaled.view(np.uint32)
        sign = bits >> 24
        sign &= 0x80
        magnitude = bits & 0x7FFFFFFF
        # To nearest even at the third bit of the mantissa; the bias of the exponent from 127 to 7.
        codes = magnitude >> 20
        codes &= 1
        codes += 0x7FFFF
        codes += magnitude
        codes >>= 20
        codes = np.maximum(codes.view(np.int32), _SUBNORMALS - 1)
        codes -= _SUBNORMALS - 8
        small = codes < 8
        if small.any():  # below 2**-6 codes are multiples of 2**-9
            exact = magnitude.view(np.float32)[small] * np.float32(512)
            codes[small] = np.rint(exact).astype(np.int32)
        codes |= sign.view(np.int32)
        return codes.astype(np.uint8)

    def _from_codes(self, codes: Bytes) -> Floats:
        return np.take(_E4M3, codes, mode="clip")

    def _code_error(self, magnitude: Floats, scale: Floats) -> Floats:
        error: Floats = np.maximum(magnitude / 16, scale * np.float32(2.0**-10))
        return error


_SUBNORMALS = (127 - 6) << 3
"""Upper bits of the float32 2**-6, whose code is 8."""


def _e4m3_values() -> Floats:
    codes = np.arange(256)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    normal = np.ldexp(1 + mantissa / 8, exponent - 7)
    values = np.where(exponent == 0, mantissa * 2.0**-9, normal)
    values[(codes & 0x7F) == 0x7F] = np.nan
    return np.where(codes & 0x80, -values, values).astype(np.float32)


_E4M3 = _e4m3_values()


def _sizes(layout: KVLayout) -> tuple[int, int, int]:
    rows = 2 * layout.num_kv_heads * layout.block_size_tokens
    return UNIT_BYTES, rows * HALF_BYTES, rows * layout.head_dim

"""What the quantising codecs share: scales in half precision, rounded so that nothing overflows,
and codes packed into bytes.

Scales of a layer are float16 in units of a power of two that its largest value decides, so that
layers of any magnitude have scales of full precision.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvstore.codecs.base import Bytes, Floats, Halves
from kvstore.core.errors import ProtocolError

GROUP = 32
UNIT_BYTES = 2
"""Of the exponent of the unit, an int16."""
HALF_BYTES = 2
_EXPONENT_MIN, _EXPONENT_MAX = -80, 100
"""Of the largest value of a layer. Then all scales, and their inverses, are normal float32."""
_UNITS_LOG2 = 15
"""The largest value of a layer is below 2**15 units."""
SLACK = np.float32(2.0**-20)
"""Relative to the largest value of a group: more than the float32 rounding of all steps."""
HALF_ROUNDING = np.float32(2.0**-10)
"""Relative, of a number rounded to float16 in one direction."""
HALF_ROUNDED = np.float32(1 + 2.0**-10)


@dataclass(frozen=True)
class Units:
    """The unit of each layer of a chunk."""

    exponents: NDArray[np.int16]

    def values(self, axes: int) -> Floats:
        """`[layer]` followed by `axes` axes of length 1."""
        unit = np.ldexp(np.float32(1), self.exponents.astype(np.int32))
        return unit.astype(np.float32).reshape(-1, *[1] * axes)

    def write(self, into: Bytes) -> None:
        into[:] = self.exponents.astype("<i2").view(np.uint8).reshape(-1, UNIT_BYTES)


def choose_units(largest: Floats) -> Units | None:
    """For the largest magnitude of each layer; None if one is not finite or too far from 1 for
    float32 arithmetic to keep its precision."""
    usable = (largest >= 2.0**_EXPONENT_MIN) & (largest <= 2.0**_EXPONENT_MAX)
    if not np.all(usable | (largest == 0)):  # NaN compares false
        return None
    exponents = np.frexp(largest)[1] - _UNITS_LOG2
    return Units(np.where(largest == 0, 0, exponents).astype(np.int16))


def read_units(encoded: Bytes) -> Units:
    exponents = np.ascontiguousarray(encoded).view("<i2").reshape(-1).astype(np.int16)
    if np.any(np.abs(exponents.astype(np.int32)) > _EXPONENT_MAX + _UNITS_LOG2 + 1):
        raise ProtocolError("encoded block: a layer's exponent is out of range; drop the block")
    return Units(exponents)


def write_halves(halves: Halves, into: Bytes) -> None:
    """`[layer][...]` as little-endian float16."""
    into[:] = halves.astype("<f2", copy=False).reshape(len(halves), -1).view(np.uint8)


def read_halves(encoded: Bytes) -> Floats:
    return np.ascontiguousarray(encoded).view("<f2").astype(np.float32)


def round_up_half(values: Floats) -> Halves:
    """The smallest float16 that is not below. For values below 2**15.9 in magnitude."""
    halves = values.astype(np.float16)
    above = np.nextafter(halves, np.float16(np.inf))
    return np.where(halves.astype(np.float32) < values, above, halves)


def round_down_half(values: Floats) -> Halves:
    return -round_up_half(-values)


def inverse(scales: Floats) -> Floats:
    """1 / scale; 0 for a group that is 0 or constant."""
    out = np.zeros_like(scales)
    np.divide(np.float32(1), scales, out=out, where=scales > 0)
    return out


def packed_bytes(num_codes: int, bits: int) -> int:
    return -(-num_codes * bits // 8)


def pack(codes: Bytes, bits: int, into: Bytes) -> None:
    """`[layer][code]` of `bits` each; byte i holds codes i, i + n, i + 2n, ... of n bytes."""
    layers, width = into.shape
    per_byte = 8 // bits
    padded = codes
    if codes.shape[1] != width * per_byte:
        padded = np.zeros((layers, width * per_byte), np.uint8)
        padded[:, : codes.shape[1]] = codes
    parts = padded.reshape(layers, per_byte, width)
    into[:] = parts[:, 0]
    for i in range(1, per_byte):
        into |= parts[:, i] << np.uint8(bits * i)


def unpack(packed: Bytes, bits: int, num_codes: int) -> Bytes:
    layers, width = packed.shape
    codes = np.empty((layers, 8 // bits, width), np.uint8)
    for i in range(8 // bits):
        np.right_shift(packed, np.uint8(bits * i), out=codes[:, i])
    codes &= np.uint8((1 << bits) - 1)
    return codes.reshape(layers, -1)[:, :num_codes]


def split(encoded: Bytes, *sizes: int) -> list[Bytes]:
    """Consecutive fields of every layer."""
    assert sum(sizes) == encoded.shape[1]
    ends = np.cumsum(sizes)
    return [encoded[:, end - size : end] for end, size in zip(ends, sizes, strict=True)]


def largest_divisor(number: int, at_most: int) -> int:
    return next(d for d in range(min(number, at_most), 0, -1) if number % d == 0)

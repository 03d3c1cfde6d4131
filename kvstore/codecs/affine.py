"""Groups of values between a lowest one and a highest one: INT4, and the two halves of KIVI.

A group is along one axis: codes 0 to `levels` stand for  low + code x scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kvstore.codecs.base import Bytes, CodecId, CodecName, Floats, Groups, Halves
from kvstore.codecs.dtypes import rounding_error
from kvstore.codecs.scaling import (
    GROUP,
    HALF_BYTES,
    HALF_ROUNDED,
    HALF_ROUNDING,
    SLACK,
    UNIT_BYTES,
    choose_units,
    inverse,
    largest_divisor,
    pack,
    packed_bytes,
    read_halves,
    read_units,
    round_down_half,
    round_up_half,
    split,
    unpack,
    write_halves,
)
from kvstore.core.layout import KVLayout


@dataclass(frozen=True)
class Range:
    """Lowest and highest value of each group; the axis of the group has length 1."""

    low: Floats
    high: Floats

    def largest(self) -> Floats:
        """Magnitude, of each layer."""
        both = np.maximum(-self.low, self.high)
        largest: Floats = both.reshape(len(both), -1).max(1)
        return largest


@dataclass(frozen=True)
class Steps:
    """What a group's codes stand for, in units."""

    low: Halves
    scale: Halves


def range_of(groups: Floats, axis: int) -> Range:
    """Over `axis` of `[layer][...]`; the last one is fastest as the first of a transposed copy."""
    if axis == groups.ndim - 1:
        columns = np.ascontiguousarray(groups.reshape(-1, groups.shape[-1]).T)
        shape = (*groups.shape[:-1], 1)
        return Range(columns.min(0).reshape(shape), columns.max(0).reshape(shape))
    return Range(groups.min(axis, keepdims=True), groups.max(axis, keepdims=True))


def steps_of(found: Range, unit: Floats, levels: int) -> Steps:
    low = round_down_half(found.low / unit)
    spread = found.high / unit - low.astype(np.float32)
    return Steps(low, round_up_half(spread / np.float32(levels)))


def to_codes(groups: Floats, steps: Steps, unit: Floats) -> Bytes:
    scaled = groups - steps.low.astype(np.float32) * unit
    scaled *= inverse(steps.scale.astype(np.float32) * unit)
    return np.rint(scaled, out=scaled).astype(np.uint8)


def from_codes(codes: Bytes, low: Floats, scale: Floats) -> Floats:
    values = codes.astype(np.float32)
    values *= scale
    values += low
    return values


def affine_error(groups: Floats, axis: int, levels: int, dtype: str, layer: Floats) -> Floats:
    """Bound of a group: half a step, and what rounding adds. `layer`: its largest magnitude."""
    found = range_of(groups, axis)
    largest = np.maximum(-found.low, found.high)
    spread = found.high - found.low + HALF_ROUNDING * np.abs(found.low)
    step = spread / np.float32(levels) * HALF_ROUNDED + layer * np.float32(2.0**-37)
    error: Floats = np.multiply(step, np.float32(0.5), dtype=np.float32)
    error += SLACK * largest
    error += rounding_error(largest * np.float32(1.01), dtype)
    return error


class Int4:
    """Groups of 32 channels of one token (or the largest divisor of the head below that). Largest
    error: 1/30 of the range of the group.

    A layer is  unit │ lows │ scales │ codes, two a byte.
    """

    name: CodecName = "int4"
    id = CodecId.INT4
    _LEVELS = 15

    def groups(self, layout: KVLayout) -> Groups:
        return Groups(largest_divisor(layout.head_dim, GROUP), tokens=0, residual_tokens=0)

    def layer_bytes(self, layout: KVLayout) -> int:
        return sum(self._sizes(layout))

    def encode(self, values: Floats, layout: KVLayout, encoded: Bytes) -> bool:
        groups = values.reshape(len(values), -1, self.groups(layout).channels)
        found = range_of(groups, 2)
        units = choose_units(found.largest())
        if units is None:
            return False
        steps = steps_of(found, units.values(2), self._LEVELS)
        unit_field, low_field, scale_field, code_field = split(encoded, *self._sizes(layout))
        units.write(unit_field)
        write_halves(steps.low, low_field)
        write_halves(steps.scale, scale_field)
        codes = to_codes(groups, steps, units.values(2))
        pack(codes.reshape(len(values), -1), 4, code_field)
        return True

    def decode(self, encoded: Bytes, layout: KVLayout) -> Floats:
        unit_field, low_field, scale_field, code_field = split(encoded, *self._sizes(layout))
        unit = read_units(unit_field).values(1)
        low, scale = read_halves(low_field) * unit, read_halves(scale_field) * unit
        codes = unpack(code_field, 4, self._num_values(layout))
        groups = codes.reshape(len(encoded), -1, self.groups(layout).channels)
        return from_codes(groups, low[:, :, None], scale[:, :, None]).reshape(
            len(encoded), *layout.shape[1:]
        )

    def error_bound(self, values: Floats, layout: KVLayout) -> Floats:
        channels = self.groups(layout).channels
        groups = values.reshape(len(values), -1, channels)
        layer = np.abs(groups).max((1, 2), keepdims=True)
        bound = affine_error(groups, 2, self._LEVELS, layout.dtype, layer)
        return np.repeat(bound, channels, 2).reshape(values.shape)

    def _sizes(self, layout: KVLayout) -> tuple[int, int, int, int]:
        values = self._num_values(layout)
        halves = values // self.groups(layout).channels * HALF_BYTES
        return UNIT_BYTES, halves, halves, packed_bytes(values, 4)

    def _num_values(self, layout: KVLayout) -> int:
        return 2 * layout.num_kv_heads * layout.block_size_tokens * layout.head_dim

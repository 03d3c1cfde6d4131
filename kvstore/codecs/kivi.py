"""KIVI-style 2-bit: keys grouped per channel, values per token, a residual tail untouched.

Keys have channels that are large for every token, so that one scale per channel fits them; values
have no such channels. After 'KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache'
(ICML'24).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kvstore.codecs.affine import (
    Steps,
    affine_error,
    from_codes,
    range_of,
    steps_of,
    to_codes,
)
from kvstore.codecs.base import AnyArray, Bytes, CodecId, CodecName, Floats, Groups
from kvstore.codecs.dtypes import STORAGE, from_float32, to_float32
from kvstore.codecs.scaling import (
    GROUP,
    HALF_BYTES,
    UNIT_BYTES,
    choose_units,
    largest_divisor,
    pack,
    packed_bytes,
    read_halves,
    read_units,
    split,
    unpack,
    write_halves,
)
from kvstore.core.layout import DTYPE_BYTES, KVLayout

_LEVELS = 3
_BITS = 2
_KEY_AXIS, _VALUE_AXIS = 3, 4
"""Of a group, in `[layer][kv_head][group][token][head_dim]` and
`[layer][kv_head][token][group][channel]`."""


@dataclass(frozen=True)
class _Shape:
    """How one layer is divided."""

    heads: int
    head_dim: int
    group_tokens: int
    group_channels: int
    body_tokens: int
    tail_tokens: int
    dtype: str

    @classmethod
    def of(cls, layout: KVLayout) -> _Shape:
        tokens = min(GROUP, layout.block_size_tokens)
        tail = layout.block_size_tokens % tokens
        return cls(
            heads=layout.num_kv_heads,
            head_dim=layout.head_dim,
            group_tokens=tokens,
            group_channels=largest_divisor(layout.head_dim, GROUP),
            body_tokens=layout.block_size_tokens - tail,
            tail_tokens=tail,
            dtype=layout.dtype,
        )

    @property
    def body_values(self) -> int:
        """Of the keys, and as many of the values."""
        return self.heads * self.body_tokens * self.head_dim

    @property
    def key_groups(self) -> int:
        return self.body_values // self.group_tokens

    @property
    def value_groups(self) -> int:
        return self.body_values // self.group_channels

    @property
    def tail_bytes(self) -> int:
        return 2 * self.heads * self.tail_tokens * self.head_dim * DTYPE_BYTES[self.dtype]

    def keys(self, body: AnyArray) -> AnyArray:
        groups = self.body_tokens // self.group_tokens
        return body.reshape(-1, self.heads, groups, self.group_tokens, self.head_dim)

    def values(self, body: AnyArray) -> AnyArray:
        groups = self.head_dim // self.group_channels
        return body.reshape(-1, self.heads, self.body_tokens, groups, self.group_channels)

    def sizes(self) -> tuple[int, ...]:
        """unit │ K lows │ K scales │ V lows │ V scales │ K codes │ V codes │ tail"""
        keys, values = self.key_groups * HALF_BYTES, self.value_groups * HALF_BYTES
        codes = packed_bytes(self.body_values, _BITS)
        return UNIT_BYTES, keys, keys, values, values, codes, codes, self.tail_bytes


class Kivi2:
    """Groups of 32 tokens (a whole block, if it is shorter) of one channel of K, and of 32 channels
    of one token of V; tokens beyond the last whole group are kept as they are. Largest error: 1/6
    of the range of the group."""

    name: CodecName = "kivi2"
    id = CodecId.KIVI2

    def groups(self, layout: KVLayout) -> Groups:
        shape = _Shape.of(layout)
        return Groups(shape.group_channels, shape.group_tokens, shape.tail_tokens)

    def layer_bytes(self, layout: KVLayout) -> int:
        return sum(_Shape.of(layout).sizes())

    def encode(self, values: Floats, layout: KVLayout, encoded: Bytes) -> bool:
        shape = _Shape.of(layout)
        k, v = _bodies(values, shape)
        key_range, value_range = range_of(k, _KEY_AXIS), range_of(v, _VALUE_AXIS)
        tail = values[:, :, :, shape.body_tokens :]
        units = choose_units(np.maximum(key_range.largest(), value_range.largest()))
        if units is None or not np.isfinite(tail).all():
            return False
        unit = units.values(4)
        unit_field, *fields, tail_field = split(encoded, *shape.sizes())
        units.write(unit_field)
        for groups, found, (low, scale, codes) in (
            (k, key_range, (fields[0], fields[1], fields[4])),
            (v, value_range, (fields[2], fields[3], fields[5])),
        ):
            steps = steps_of(found, unit, _LEVELS)
            _write(groups, steps, unit, (low, scale, codes))
        stored = from_float32(np.ascontiguousarray(tail), shape.dtype)
        tail_field[:] = stored.reshape(len(values), -1).view(np.uint8)
        return True

    def decode(self, encoded: Bytes, layout: KVLayout) -> Floats:
        shape = _Shape.of(layout)
        unit_field, *fields, tail_field = split(encoded, *shape.sizes())
        unit = read_units(unit_field).values(1)
        out = np.empty((len(encoded), *layout.shape[1:]), np.float32)
        body = out[:, :, :, : shape.body_tokens]
        grouped = (shape.keys, shape.values)
        axes = (_KEY_AXIS, _VALUE_AXIS)
        for which, (low, scale, codes) in enumerate(
            ((fields[0], fields[1], fields[4]), (fields[2], fields[3], fields[5]))
        ):
            unpacked = grouped[which](unpack(codes, _BITS, shape.body_values))
            one_each = _ones_at(unpacked.shape, axes[which])
            lows = (read_halves(low) * unit).reshape(one_each)
            scales = (read_halves(scale) * unit).reshape(one_each)
            body[:, which] = from_codes(unpacked, lows, scales).reshape(body[:, which].shape)
        if shape.tail_tokens:
            out[:, :, :, shape.body_tokens :] = _read_tail(tail_field, shape)
        return out

    def error_bound(self, values: Floats, layout: KVLayout) -> Floats:
        shape = _Shape.of(layout)
        k, v = _bodies(values, shape)
        both = np.maximum(
            np.abs(k).max((1, 2, 3, 4), keepdims=True), np.abs(v).max((1, 2, 3, 4), keepdims=True)
        )
        bound = np.zeros_like(values)
        body = bound[:, :, :, : shape.body_tokens]
        for which, (groups, axis) in enumerate(((k, _KEY_AXIS), (v, _VALUE_AXIS))):
            error = affine_error(groups, axis, _LEVELS, layout.dtype, both)
            body[:, which] = np.broadcast_to(error, groups.shape).reshape(body[:, which].shape)
        return bound


def _bodies(values: Floats, shape: _Shape) -> tuple[Floats, Floats]:
    """Keys and values of the whole groups, as their groups."""
    body = values[:, :, :, : shape.body_tokens]
    return shape.keys(body[:, 0]), shape.values(body[:, 1])


def _write(groups: Floats, steps: Steps, unit: Floats, fields: tuple[Bytes, Bytes, Bytes]) -> None:
    low, scale, codes = fields
    write_halves(steps.low, low)
    write_halves(steps.scale, scale)
    pack(to_codes(groups, steps, unit).reshape(len(groups), -1), _BITS, codes)


def _read_tail(field: Bytes, shape: _Shape) -> Floats:
    stored = np.ascontiguousarray(field).view(STORAGE[shape.dtype])
    tail = to_float32(stored, shape.dtype)
    return tail.reshape(len(field), 2, shape.heads, shape.tail_tokens, shape.head_dim)


def _ones_at(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return (*shape[:axis], 1, *shape[axis + 1 :])

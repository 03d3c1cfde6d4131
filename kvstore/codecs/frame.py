"""Whole blocks through a codec: a header, then the encoded layers.

header, 64 bytes │ layer 0 │ layer 1 │ ...      each `codec.layer_bytes(layout)` long
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from kvstore.codecs.base import Codec, CodecId
from kvstore.codecs.dtypes import STORAGE, from_float32, to_float32
from kvstore.codecs.header import (
    HEADER_BYTES,
    BlockHeader,
    check_layout,
    header_of,
    parse_header,
)
from kvstore.codecs.registry import CODECS, CODECS_BY_ID
from kvstore.core.errors import InvalidArgumentError, ProtocolError
from kvstore.core.layout import KVLayout

_CHUNK_VALUES = 64 << 10
"""Values worked on at a time: their float32 copies fit in a core's cache."""


def encoded_bytes(codec: Codec, layout: KVLayout) -> int:
    """Of a block of `layout`, header included, unless it has to fall back to raw."""
    return HEADER_BYTES + layout.num_layers * codec.layer_bytes(layout)


def encoded_bytes_max(codec: Codec, layout: KVLayout) -> int:
    return max(encoded_bytes(codec, layout), HEADER_BYTES + layout.block_bytes)


def encode_block(codec: Codec, data: memoryview, layout: KVLayout, into: memoryview) -> BlockHeader:
    """Write header and payload into `into`, which has at least `encoded_bytes_max`; returns the
    header. Its codec is RAW, and `fell_back` is set, where the codec cannot hold its error bound
    (values that are not finite, or of extreme magnitude).

    Raises InvalidArgumentError: `data` is no block of that layout, `into` is too small.
    """
    check_layout(layout)
    if data.nbytes != layout.block_bytes or into.nbytes < encoded_bytes_max(codec, layout):
        raise InvalidArgumentError(
            f"codec {codec.name}: a block of this layout has {layout.block_bytes} bytes and is "
            f"encoded into {encoded_bytes_max(codec, layout)}; got {data.nbytes} and {into.nbytes}"
        )
    header = header_of(codec, layout)
    payload = into[HEADER_BYTES : HEADER_BYTES + header.payload_bytes]
    if codec.id is CodecId.RAW or not _encode(codec, data, layout, payload):
        header = header_of(CODECS["raw"], layout, fell_back=codec.id is not CodecId.RAW)
        _copy(into[HEADER_BYTES : HEADER_BYTES + layout.block_bytes], data)
    into[:HEADER_BYTES] = header.encode()
    return header


def decode_block(encoded: memoryview, into: memoryview) -> BlockHeader:
    """Inverse of `encode_block`, within the codec's error bound. `into` has the block's length.

    Raises ProtocolError for bytes that are no encoded block, or one of another length.
    """
    header = parse_header(encoded[:HEADER_BYTES])
    layout = header.layout
    payload = encoded[HEADER_BYTES:]
    if payload.nbytes != header.payload_bytes or into.nbytes != layout.block_bytes:
        raise ProtocolError(
            f"encoded block: {payload.nbytes} bytes for a block of {into.nbytes}, but its header "
            f"says {header.payload_bytes} for one of {layout.block_bytes}; drop it"
        )
    if header.codec is CodecId.RAW:
        _copy(into, payload)
    else:
        _decode(CODECS_BY_ID[header.codec], payload, layout, into)
    return header


def _encode(codec: Codec, data: memoryview, layout: KVLayout, payload: memoryview) -> bool:
    stored = np.frombuffer(data, STORAGE[layout.dtype]).reshape(layout.shape)
    encoded = np.frombuffer(payload, np.uint8).reshape(layout.num_layers, -1)
    return all(
        codec.encode(to_float32(stored[part], layout.dtype), layout, encoded[part])
        for part in _chunks(layout)
    )


def _decode(codec: Codec, payload: memoryview, layout: KVLayout, into: memoryview) -> None:
    stored = np.frombuffer(into, STORAGE[layout.dtype]).reshape(layout.shape)
    encoded = np.frombuffer(payload, np.uint8).reshape(layout.num_layers, -1)
    for part in _chunks(layout):
        with np.errstate(all="ignore"):  # what was not encoded here may decode to any number
            stored[part] = from_float32(codec.decode(encoded[part], layout), layout.dtype)


def _chunks(layout: KVLayout) -> Iterator[slice]:
    """Consecutive layers."""
    values = layout.block_bytes // layout.num_layers // np.dtype(STORAGE[layout.dtype]).itemsize
    step = max(1, _CHUNK_VALUES // values)
    for first in range(0, layout.num_layers, step):
        yield slice(first, min(first + step, layout.num_layers))


def _copy(into: memoryview, data: memoryview) -> None:
    np.copyto(np.frombuffer(into, np.uint8), np.frombuffer(data, np.uint8))

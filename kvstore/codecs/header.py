"""The header of an encoded block: all that is needed to decode it.

Pure: bytes in, values out. Headers come from disks and peers, so that any bytes at all must be
expected.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from kvstore.codecs.base import Codec, CodecId, Groups
from kvstore.codecs.registry import CODECS_BY_ID
from kvstore.core.errors import InvalidArgumentError, ProtocolError
from kvstore.core.layout import KVLayout

MAGIC = b"KVCODEC\0"
VERSION = 1
HEADER_BYTES = 64
BLOCK_BYTES_MAX = 1 << 30
DIMENSION_MAX = 1 << 16
_FIELDS = struct.Struct("<8sHBBHHHH4IQ")
_DTYPES = ("float32", "bfloat16", "float16")
"""By their number on disk, from 1."""
_FELL_BACK = 1
"""Flag: another codec was asked for, but its error bound could not be held."""


@dataclass(frozen=True, slots=True)
class BlockHeader:
    codec: CodecId
    layout: KVLayout
    groups: Groups
    fell_back: bool
    payload_bytes: int

    def encode(self) -> bytes:
        layout, groups = self.layout, self.groups
        fields = _FIELDS.pack(
            MAGIC,
            VERSION,
            self.codec,
            1 + _DTYPES.index(layout.dtype),
            _FELL_BACK if self.fell_back else 0,
            groups.channels,
            groups.tokens,
            groups.residual_tokens,
            layout.num_layers,
            layout.num_kv_heads,
            layout.block_size_tokens,
            layout.head_dim,
            self.payload_bytes,
        )
        return fields.ljust(HEADER_BYTES, b"\0")


def header_of(codec: Codec, layout: KVLayout, *, fell_back: bool = False) -> BlockHeader:
    payload_bytes = layout.num_layers * codec.layer_bytes(layout)
    return BlockHeader(codec.id, layout, codec.groups(layout), fell_back, payload_bytes)


def check_layout(layout: KVLayout) -> None:
    """Raises InvalidArgumentError if a header cannot say it."""
    if max(layout.shape) >= DIMENSION_MAX or layout.block_bytes > BLOCK_BYTES_MAX:
        raise InvalidArgumentError(
            f"KV layout {layout.shape} of {layout.block_bytes} bytes is too large for a codec; "
            f"blocks have at most {BLOCK_BYTES_MAX} bytes, dimensions are below {DIMENSION_MAX}"
        )


def parse_header(data: bytes | memoryview) -> BlockHeader:
    """Inverse of `encode`. Raises ProtocolError for anything that it does not write."""
    if len(data) < HEADER_BYTES:
        raise _not_a_block(f"{len(data)} bytes are no header")
    magic, version, codec_id, dtype, flags, *rest = _FIELDS.unpack_from(data)
    if magic != MAGIC or version != VERSION or any(data[_FIELDS.size : HEADER_BYTES]):
        raise _not_a_block("no header of this version")
    if codec_id not in CODECS_BY_ID or not 1 <= dtype <= len(_DTYPES) or flags > _FELL_BACK:
        raise _not_a_block(f"codec {codec_id}, dtype {dtype} or flags {flags} are not known")
    *groups, layers, heads, tokens, head_dim, payload_bytes = rest
    layout = _parse_layout(layers, heads, tokens, head_dim, _DTYPES[dtype - 1])
    found = BlockHeader(
        CodecId(codec_id), layout, Groups(*groups), bool(flags & _FELL_BACK), payload_bytes
    )
    if found != header_of(CODECS_BY_ID[found.codec], layout, fell_back=found.fell_back):
        raise _not_a_block(f"group sizes or length are not those of codec {found.codec.name}")
    return found


def _parse_layout(layers: int, heads: int, tokens: int, head_dim: int, dtype: str) -> KVLayout:
    if max(layers, heads, tokens, head_dim) >= DIMENSION_MAX:
        raise _not_a_block("a dimension is out of range")
    try:
        layout = KVLayout(layers, heads, head_dim, tokens, dtype)
        check_layout(layout)
    except InvalidArgumentError as error:
        raise _not_a_block(str(error)) from error
    return layout


def _not_a_block(why: str) -> ProtocolError:
    return ProtocolError(f"encoded block: {why}; it is damaged or of another version, drop it")

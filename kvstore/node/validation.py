"""Fields that arrive from clients, checked one by one: errors name the field and what it takes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from kvstore.core.errors import InvalidArgumentError
from kvstore.core.ids import (
    BLOCK_HASH_BYTES,
    FINGERPRINT_BYTES,
    BlockKeys,
    LayoutFingerprint,
    unpack_hashes,
)
from kvstore.core.layout import KVLayout
from kvstore.node.retention import RetentionRange
from kvstore.node.writing import CommittedBlock
from kvstore.wire.v1 import block_pb2, node_pb2

MAX_KEYS = 65_536
"""Blocks in one call."""
MAX_LAYOUTS = 256
MAX_NAME_CHARACTERS = 256
MAX_WAIT_MS = 600_000
MAX_DURATION_MS = 10 * 365 * 24 * 3_600_000
"""Of pins and retention. Ten years: what is longer is a mistake, or means for ever."""
MAX_RANGES = 1_024
MAX_PRIORITY = 100


def check_keys(keys: block_pb2.BlockKeys) -> BlockKeys:
    if len(keys.layout_fingerprint) != FINGERPRINT_BYTES:
        raise InvalidArgumentError(
            f"keys.layout_fingerprint must have {FINGERPRINT_BYTES} bytes, "
            f"got {len(keys.layout_fingerprint)}"
        )
    size = len(keys.block_hashes)
    if size % BLOCK_HASH_BYTES:
        raise InvalidArgumentError(
            f"keys.block_hashes must be whole {BLOCK_HASH_BYTES}-byte hashes, got {size} bytes"
        )
    check_count("keys.block_hashes", size // BLOCK_HASH_BYTES)
    return BlockKeys(LayoutFingerprint(keys.layout_fingerprint), unpack_hashes(keys.block_hashes))


def check_count(field: str, count: int, limit: int = MAX_KEYS) -> None:
    if count > limit:
        raise InvalidArgumentError(f"{field}: at most {limit} in one call, got {count}")


def check_layouts(layouts: Sequence[block_pb2.KVLayout], max_block_bytes: int) -> list[KVLayout]:
    check_count("layouts", len(layouts), MAX_LAYOUTS)
    return [_check_layout(layout, max_block_bytes) for layout in layouts]


def _check_layout(layout: block_pb2.KVLayout, max_block_bytes: int) -> KVLayout:
    checked = KVLayout(
        num_layers=layout.num_layers,
        num_kv_heads=layout.num_kv_heads,
        head_dim=layout.head_dim,
        block_size_tokens=layout.block_size_tokens,
        dtype=layout.dtype,
        first_kv_head=layout.first_kv_head,
        total_kv_heads=layout.total_kv_heads or None,
        layers=tuple(layout.layers) or None,
    )
    if checked.block_bytes > max_block_bytes:
        raise InvalidArgumentError(
            f"layouts: a block of {checked.block_bytes} bytes does not fit this node, which takes "
            f"up to {max_block_bytes}; use smaller blocks or a larger host tier"
        )
    return checked


def check_name(field: str, name: str) -> str:
    if not 1 <= len(name) <= MAX_NAME_CHARACTERS:
        raise InvalidArgumentError(
            f"{field} must have 1 to {MAX_NAME_CHARACTERS} characters, got {len(name)}"
        )
    return name


def check_duration_s(field: str, duration_ms: int) -> float | None:
    """None = without an end, which is 0 on the wire."""
    if duration_ms > MAX_DURATION_MS:
        raise InvalidArgumentError(
            f"{field} must be at most {MAX_DURATION_MS} (ten years), got {duration_ms}; "
            "0 = without an end"
        )
    return duration_ms / 1000 if duration_ms else None


def check_retention(ranges: Sequence[node_pb2.Retention], num_keys: int) -> list[RetentionRange]:
    check_count("retention", len(ranges), MAX_RANGES)
    checked = sorted((_check_range(part, num_keys) for part in ranges), key=lambda part: part.first)
    for part, following in pairwise(checked):
        if following.first < part.last:
            raise InvalidArgumentError(
                f"retention: the ranges [{part.first}, {part.last}) and "
                f"[{following.first}, {following.last}) overlap; say one thing of each key"
            )
    return checked


def _check_range(part: node_pb2.Retention, num_keys: int) -> RetentionRange:
    if not part.first < part.last <= num_keys:
        raise InvalidArgumentError(
            f"retention: [{part.first}, {part.last}) is no range of the {num_keys} keys of the call"
        )
    if part.priority > MAX_PRIORITY:
        raise InvalidArgumentError(
            f"retention: priority must lie in 0..{MAX_PRIORITY}, got {part.priority}"
        )
    duration_s = check_duration_s("retention: duration_ms", part.duration_ms)
    return RetentionRange(part.first, part.last, part.priority, duration_s)


def check_wait_s(wait_ms: int) -> float:
    if wait_ms > MAX_WAIT_MS:
        raise InvalidArgumentError(f"wait_ms must be at most {MAX_WAIT_MS}, got {wait_ms}")
    return wait_ms / 1000


def check_block_bytes(block_bytes: int, max_block_bytes: int) -> int:
    if not 1 <= block_bytes <= max_block_bytes:
        raise InvalidArgumentError(
            f"block_bytes must lie in [1, {max_block_bytes}], got {block_bytes}"
        )
    return block_bytes


def check_committed(request: node_pb2.CommitRequest) -> list[CommittedBlock]:
    columns = (request.indices, request.lengths_bytes, request.checksums)
    if len({len(column) for column in columns}) != 1:
        raise InvalidArgumentError(
            "indices, lengths_bytes and checksums must have one entry for each block, got "
            + ", ".join(str(len(column)) for column in columns)
        )
    check_count("indices", len(request.indices))
    return [CommittedBlock(*row) for row in zip(*columns, strict=True)]

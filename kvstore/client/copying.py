"""Batches of copies between the arena and callers' memory: the work that leaves the event loop."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from kvstore.client.arrays import as_items
from kvstore.core.layout import DTYPE_BYTES, KVLayout
from kvstore.core.ranges import BlockRange
from kvstore.tiers.memory import SMALL_BYTES, copy_bytes, copy_with_checksum

Items: TypeAlias = npt.NDArray[Any]
"""Elements as plain bits; see `as_items`."""


@dataclass(frozen=True, slots=True)
class Copy:
    index: int
    """Which of a batch."""
    into: memoryview
    """Flat bytes, as many as `data` has."""
    data: memoryview


def copy_view(into: memoryview, data: memoryview) -> None:
    """Between flat bytes of one length; releases the GIL where that pays."""
    if len(data) <= SMALL_BYTES:
        into[:] = data
    else:
        copy_bytes(into, data)


def copy_all_with_checksums(copies: Iterator[Copy]) -> dict[int, int]:
    """CRC-32C of each copy, by its index."""
    return {copy.index: copy_with_checksum(copy.into, copy.data) for copy in copies}


def gather(target: Items, data: memoryview, layout: KVLayout, part: BlockRange) -> None:
    """Part of a block into an array of the part's shape and any strides. Raises
    InvalidArgumentError if the part is outside of `layout`, or the block is of another one."""
    np.copyto(target, as_items(data, layout)[part.index(layout)])


def part_of(into: memoryview, layout: KVLayout, part: BlockRange) -> Items:
    """As many flat bytes as the part has, as an array of its shape."""
    dtype = np.dtype(f"u{DTYPE_BYTES[layout.dtype]}")
    return np.frombuffer(into, dtype).reshape(part.shape(layout))

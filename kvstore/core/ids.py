"""A type for each identity, so that raw bytes and numbers cannot be passed by mistake."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import NamedTuple, NewType

import numpy as np

BLOCK_HASH_BYTES = 32
FINGERPRINT_BYTES = 16

BlockHash = NewType("BlockHash", bytes)
"""SHA-256 over (root, parent hash, token ids of the block); 32 bytes."""

LayoutFingerprint = NewType("LayoutFingerprint", bytes)
"""First 16 bytes of the digest of a `KVLayout`."""

RoutingKey = NewType("RoutingKey", int)
"""First 64 bits of a block hash: enough for an estimate, where a collision costs a wrong guess
only."""

NodeId = NewType("NodeId", str)
MemberId = NewType("MemberId", str)
RequestId = NewType("RequestId", str)
SessionId = NewType("SessionId", int)
LeaseId = NewType("LeaseId", int)
ReservationId = NewType("ReservationId", int)


class BlockKey(NamedTuple):
    """Names one block's bytes: which layout they have, and which prefix they belong to.

    A named tuple, for it is the key of every index: its hash and comparison are then native code.
    """

    layout: LayoutFingerprint
    hash: BlockHash


@dataclass(frozen=True, slots=True)
class BlockKeys:
    """A batch of keys of one layout, in prefix order where there is one. The unit of every store
    verb."""

    layout: LayoutFingerprint
    hashes: Sequence[BlockHash]

    def __len__(self) -> int:
        return len(self.hashes)

    def __iter__(self) -> Iterator[BlockKey]:
        return iter(make_keys(repeat(self.layout), self.hashes))

    def __getitem__(self, part: slice) -> BlockKeys:
        return BlockKeys(self.layout, self.hashes[part])


def make_keys(layouts: Iterable[LayoutFingerprint], hashes: Iterable[BlockHash]) -> list[BlockKey]:
    """One key for each hash. Half the time of `BlockKey(...)` for each: batches have thousands."""
    return list(map(_new_key, zip(layouts, hashes, strict=False)))


_new_key: Callable[[tuple[LayoutFingerprint, BlockHash]], BlockKey] = partial(
    tuple.__new__, BlockKey
)


def routing_key(block_hash: BlockHash) -> RoutingKey:
    return RoutingKey(int.from_bytes(block_hash[:8], "little"))


def pack_hashes(hashes: Iterable[BlockHash]) -> bytes:
    """n hashes as n x 32 bytes, the form they have on the wire."""
    return b"".join(hashes)


def unpack_hashes(packed: bytes) -> list[BlockHash]:
    """Inverse of `pack_hashes`. Raises ValueError if the length is no multiple of 32."""
    if len(packed) % BLOCK_HASH_BYTES:
        raise ValueError(
            f"{len(packed)} bytes are no whole number of {BLOCK_HASH_BYTES}-byte hashes"
        )
    hashes: list[BlockHash] = np.frombuffer(packed, f"V{BLOCK_HASH_BYTES}").tolist()
    return hashes

"""Routing keys in bulk, in the form that they have on the wire."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np

from kvstore.core.ids import BlockHash, RoutingKey, pack_hashes

KEY_BYTES = 8


class RoutingKeys(Sequence[RoutingKey]):
    """Keys of consecutive blocks, 8 bytes each: little-endian, as `kvstore.core.ids.routing_key`.

    Immutable. Two stretches of keys are compared by comparing their bytes, which takes as long as
    looking up a single key.
    """

    __slots__ = ("packed",)

    def __init__(self, packed: bytes = b"") -> None:
        assert len(packed) % KEY_BYTES == 0
        self.packed = packed

    @classmethod
    def of(cls, keys: Sequence[RoutingKey]) -> RoutingKeys:
        if isinstance(keys, RoutingKeys):
            return keys
        return cls(struct.pack(f"<{len(keys)}Q", *keys))

    @classmethod
    def of_hashes(cls, hashes: Sequence[BlockHash]) -> RoutingKeys:
        """`kvstore.core.ids.routing_key` of each."""
        return cls(np.frombuffer(pack_hashes(hashes), "<u8")[::4].tobytes())

    def __len__(self) -> int:
        return len(self.packed) // KEY_BYTES

    def __iter__(self) -> Iterator[RoutingKey]:
        return iter(self.tolist())

    @overload
    def __getitem__(self, place: int) -> RoutingKey: ...

    @overload
    def __getitem__(self, place: slice) -> RoutingKeys: ...

    def __getitem__(self, place: int | slice) -> RoutingKey | RoutingKeys:
        keys = np.frombuffer(self.packed, "<u8")[place]
        return RoutingKey(int(keys)) if isinstance(place, int) else RoutingKeys(keys.tobytes())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RoutingKeys) and self.packed == other.packed

    def __hash__(self) -> int:
        return hash(self.packed)

    def __repr__(self) -> str:
        return f"<{len(self)} routing keys>"

    def tolist(self) -> list[RoutingKey]:
        keys: list[RoutingKey] = np.frombuffer(self.packed, "<u8").tolist()
        return keys

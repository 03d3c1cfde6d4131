"""Sets of members, and who holds a block in which tier."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from kvstore.tiers.base import TierKind

EXPECTED = 0
"""Stands beside the tiers: blocks that a worker was just asked to compute. Counts as device."""

TIERS = (EXPECTED, TierKind.DEVICE, TierKind.HOST, TierKind.DISK)

Slot = int
"""Place of a member in the bit sets."""

Place = int
"""A member and one of its tiers, as one number: see `place_of`."""

_FEW = 16


def place_of(slot: Slot, tier: int) -> Place:
    assert 0 <= tier < len(TIERS)
    return slot * len(TIERS) + tier


def bits(members: int) -> list[Slot]:
    """The members of a set, ascending."""
    if members.bit_count() <= _FEW:
        return _few_bits(members)
    digits = f"{members:b}"[::-1]
    return [slot for slot, digit in enumerate(digits) if digit == "1"]


def _few_bits(members: int) -> list[Slot]:
    found = []
    while members:
        lowest = members & -members
        found.append(lowest.bit_length() - 1)
        members ^= lowest
    return found


class Holders(NamedTuple):
    """Who holds a block: a bit set for each of `TIERS`, in their order."""

    expected: int = 0
    device: int = 0
    host: int = 0
    disk: int = 0

    def with_(self, place: Place) -> Holders:
        return self if self.has(place) else self._flipped(place)

    def without(self, place: Place) -> Holders:
        return self._flipped(place) if self.has(place) else self

    def has(self, place: Place) -> bool:
        return bool(self[place % len(TIERS)] >> place // len(TIERS) & 1)

    def places(self) -> Iterator[Place]:
        for tier, members in enumerate(self):
            for slot in bits(members) if members else ():
                yield place_of(slot, tier)

    def _flipped(self, place: Place) -> Holders:
        sets = list(self)
        sets[place % len(TIERS)] ^= 1 << place // len(TIERS)
        return Holders(*sets)


NOBODY = Holders()

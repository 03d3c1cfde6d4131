"""Runs: keys that follow one another in some prompt, together with who holds them.

```
 a run    keys     k0 k1 k2 k3 k4 k5 k6 k7      (8 bytes each, in one piece)
          ends              3        6  8
          held     A  A  A  B  B  B  C  C       blocks held alike are one stretch
```
A prompt is compared with a whole run at once, and a change of who holds it is one change for all of
its blocks, however many they are.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from cluster.conductor.holders import Holders, Place
from cluster.conductor.routing_keys import KEY_BYTES, RoutingKeys
from kvstore.core.ids import RoutingKey

RUN_BLOCKS_MAX = 256
"""A key is found in its run by searching, and a run is copied when it is cut."""

_MANY = 16


class Stretch(NamedTuple):
    """Blocks [start, end) of a run."""

    start: int
    end: int
    holders: Holders


class Run:
    """Never empty while it is in the table; neighbouring stretches have different holders."""

    __slots__ = ("ends", "held", "packed")

    def __init__(self, packed: bytes, ends: list[int], held: list[Holders]) -> None:
        assert len(ends) == len(held)
        assert ends[-1] * KEY_BYTES == len(packed)
        self.packed = packed
        self.ends = ends
        self.held = held

    def __len__(self) -> int:
        return self.ends[-1]

    def offset_of(self, key: bytes) -> int:
        """Of a key that is here."""
        at = self.packed.find(key)
        while at % KEY_BYTES:
            at = self.packed.find(key, at + 1)
        return at // KEY_BYTES

    def offsets_of(self, keys: Sequence[RoutingKey]) -> list[int]:
        """Of many that are here."""
        if len(keys) < _MANY:
            return [self.offset_of(key.to_bytes(KEY_BYTES, "little")) for key in keys]
        offsets = dict(zip(RoutingKeys(self.packed).tolist(), range(len(self)), strict=True))
        return [offsets[key] for key in keys]

    def common(self, offset: int, packed: bytes, position: int) -> int:
        """How many keys from `offset` on are those of `packed` from `position` on: one or more."""
        ours, first = self.packed, offset * KEY_BYTES
        here = position * KEY_BYTES
        theirs = packed[here : here + len(ours) - first]
        if ours.startswith(theirs, first):
            return len(theirs) // KEY_BYTES
        equal, unequal = 1, len(theirs) // KEY_BYTES
        while unequal - equal > 1:
            middle = (equal + unequal) // 2
            if ours.startswith(theirs[: middle * KEY_BYTES], first):
                equal = middle
            else:
                unequal = middle
        return equal

    def stretches(self, start: int, end: int) -> list[Stretch]:
        """Of blocks [start, end), in order."""
        ends = self.ends
        if end <= ends[0]:
            return [Stretch(start, end, self.held[0])]
        first, last = bisect_right(ends, start), bisect_left(ends, end)
        starts = [start, *ends[first:last]]
        return list(map(Stretch, starts, [*ends[first:last], end], self.held[first : last + 1]))

    def change(self, start: int, end: int, new_of: Callable[[Holders], Holders]) -> int:
        """Give blocks [start, end) new holders. Returns how many blocks got other ones: `new_of`
        returns the same object for those that remain."""
        if len(self.held) > 1 or end - start < self.ends[0]:
            return self._change_part(start, end, new_of)
        old, self.held[0] = self.held[0], new_of(self.held[0])
        return 0 if self.held[0] is old else end

    def _change_part(self, start: int, end: int, new_of: Callable[[Holders], Holders]) -> int:
        first, last = bisect_right(self.ends, start), bisect_left(self.ends, end)
        ends, held, changed = [start], [self.held[first]], 0
        if start == (self.ends[first - 1] if first else 0):
            before = max(0, first - 1)
            ends, held = self.ends[before:first], self.held[before:first]
            first = before
        for part in self.stretches(start, end):
            new = new_of(part.holders)
            changed += 0 if new is part.holders else part.end - part.start
            _append(ends, held, part.end, new)
        _append(ends, held, self.ends[last], self.held[last])
        if last + 1 < len(self.ends):
            last += 1
            _append(ends, held, self.ends[last], self.held[last])
        self.ends[first : last + 1], self.held[first : last + 1] = ends, held
        return changed

    def is_at(self, place: Place) -> bool:
        """Whether a member has any of it in a tier."""
        return any(holders.has(place) for holders in self.held)

    def part(self, start: int, end: int) -> Run:
        """A copy of blocks [start, end)."""
        stretches = self.stretches(start, end)
        packed = self.packed[start * KEY_BYTES : end * KEY_BYTES]
        ends = [stretch.end - start for stretch in stretches]
        return Run(packed, ends, [stretch.holders for stretch in stretches])

    def places(self) -> set[Place]:
        return {place for holders in self.held for place in holders.places()}


def _append(ends: list[int], held: list[Holders], end: int, holders: Holders) -> None:
    if ends and ends[-1] >= end:
        return
    if held and held[-1] == holders:
        ends[-1] = end
    else:
        ends.append(end)
        held.append(holders)


def joined(parts: Sequence[Run]) -> Run:
    ends: list[int] = []
    held: list[Holders] = []
    length = 0
    for part in parts:
        for end, holders in zip(part.ends, part.held, strict=True):
            _append(ends, held, length + end, holders)
        length += len(part)
    return Run(b"".join([part.packed for part in parts]), ends, held)


def in_pieces(run: Run) -> Iterator[Run]:
    """Of `RUN_BLOCKS_MAX` blocks at most."""
    if len(run) <= RUN_BLOCKS_MAX:
        yield run
        return
    for start in range(0, len(run), RUN_BLOCKS_MAX):
        yield run.part(start, min(start + RUN_BLOCKS_MAX, len(run)))

"""Prefix index: which members hold a block in which tier, and how long a prefix each can use.

Members are small integers, a set of members an int with one bit each. Blocks held alike share one
`Holders` object, so that a walk along a prompt only stops where the holders change:

    blocks    0  1  2  3  4  5 | 6  7 | 8        Holders   A A A A A A | B B | None
    worker 0  █  █  █  █  █  █ | █  █ |          alive     {0,1}       | {0} | {}
    worker 1  █  █  █  █  █  █ |      |          prefix    0 → 8, 1 → 6
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from weakref import WeakValueDictionary

from kvstore.core.ids import RoutingKey
from kvstore.tiers.base import TierKind

EXPECTED = 0
"""Stands beside the tiers: blocks that a worker was just asked to compute. Counts as device."""

Slot = int
"""Place of a member in the bit sets."""

_TIERS = (EXPECTED, TierKind.DEVICE, TierKind.HOST, TierKind.DISK)


class Holders:
    """Who holds a block, as one bit set for each of `_TIERS`. Interned: equal means identical."""

    __slots__ = ("__weakref__", "device", "nodes", "sets")

    def __init__(self, sets: tuple[int, ...]) -> None:
        self.sets = sets
        self.device = sets[EXPECTED] | sets[TierKind.DEVICE]
        self.nodes = sets[TierKind.HOST] | sets[TierKind.DISK]


class TierBlocks(NamedTuple):
    """Blocks of a worker's usable prefix, by the fastest tier that has each."""

    device: int = 0
    host: int = 0
    disk: int = 0

    @property
    def total(self) -> int:
        return self.device + self.host + self.disk


@dataclass(frozen=True, slots=True)
class Match:
    prefixes: Mapping[Slot, TierBlocks]
    """Of every candidate with a prefix of at least one block."""
    on_nodes: int
    """Leading blocks that some node, whichever, has in its host or disk tier."""


class PrefixIndex:
    """Pure state of one owner. Verbs are idempotent; a batch costs about 0.3 us a block."""

    def __init__(self) -> None:
        self._holders: dict[RoutingKey, Holders] = {}
        self._interned: WeakValueDictionary[tuple[int, ...], Holders] = WeakValueDictionary()
        self._held: dict[tuple[Slot, int], set[RoutingKey]] = {}

    def __len__(self) -> int:
        """Distinct blocks."""
        return len(self._holders)

    def stored(self, slot: Slot, tier: int, keys: Sequence[RoutingKey]) -> None:
        assert tier in _TIERS
        held = self._held.setdefault((slot, tier), set())
        added = set(keys).difference(held)
        held |= added
        self._flip_all(slot, tier, added)

    def removed(self, slot: Slot, tier: int, keys: Sequence[RoutingKey]) -> None:
        assert tier in _TIERS
        held = self._held.get((slot, tier))
        if held is None:
            return
        gone = held.intersection(keys)
        held -= gone
        self._flip_all(slot, tier, gone)

    def cleared(self, slot: Slot, tier: int) -> None:
        held = self._held.pop((slot, tier), None)
        if held is not None:
            self._flip_all(slot, tier, held)

    def forget(self, slot: Slot) -> None:
        for tier in _TIERS:
            self.cleared(slot, tier)

    def blocks_of(self, slot: Slot) -> int:
        """Replicas known at this member, in all its tiers."""
        tiers = (TierKind.DEVICE, TierKind.HOST, TierKind.DISK)
        return sum(len(self._held.get((slot, tier), ())) for tier in tiers)

    def match(
        self, keys: Sequence[RoutingKey], candidates: int, workers_of: Mapping[Slot, int]
    ) -> Match:
        """How long a prefix of `keys` each worker among `candidates` (a bit set) can use.

        A worker reads its own device tier and the host and disk tiers of its own node;
        `workers_of[node]` is the bit set of that node's workers. A prefix ends at the first block
        that the worker cannot use, whatever it has of the later ones.
        """
        walk = _Walk(candidates, workers_of)
        last: object = self  # differs from all holders, and from None
        for position, holders in enumerate(map(self._holders.get, keys)):
            if holders is last:
                continue
            if holders is None or not walk.step(position, holders):
                return walk.end(position)
            last = holders
        return walk.end(len(keys))

    def _flip_all(self, slot: Slot, tier: int, keys: Iterable[RoutingKey]) -> None:
        """Set one member's bit where it is clear, clear it where it is set. No key comes twice."""
        bit = 1 << slot
        holders, get = self._holders, self._holders.get
        changed: dict[Holders | None, Holders | None] = {}
        for key in keys:
            old = get(key)
            try:
                new = changed[old]
            except KeyError:
                new = changed[old] = self._flip(old, tier, bit)
            if new is None:
                del holders[key]
            else:
                holders[key] = new

    def _flip(self, old: Holders | None, tier: int, bit: int) -> Holders | None:
        sets = list(old.sets) if old is not None else [0] * len(_TIERS)
        sets[tier] ^= bit
        if not any(sets):
            return None
        key = tuple(sets)
        holders = self._interned.get(key)
        if holders is None:
            holders = self._interned[key] = Holders(key)
        return holders


class _Walk:
    """Follows the candidates along a prompt, in groups of those that had the same fate so far.

    Costs something only where the holders change, and then as much as there are groups: few, for
    most candidates have nothing beyond a shared beginning.
    """

    def __init__(self, candidates: int, workers_of: Mapping[Slot, int]) -> None:
        self._workers_of = workers_of
        self._groups = [_Group(candidates, TierBlocks(), 0, 0)] if candidates else []
        self._prefixes: dict[Slot, TierBlocks] = {}
        self._on_nodes: int | None = None

    def step(self, position: int, holders: Holders) -> bool:
        """From `position` on blocks are held thus. False when nobody's prefix can grow further."""
        if self._on_nodes is None and not holders.nodes:
            self._on_nodes = position
        host = self._workers(holders.sets[TierKind.HOST])
        disk = self._workers(holders.sets[TierKind.DISK])
        groups, self._groups = self._groups, []
        for group in groups:
            blocks = group.blocks_at(position)
            rest = group.workers
            for tier, usable in enumerate((holders.device, host, disk)):
                if workers := rest & usable:
                    self._groups.append(_Group(workers, blocks, tier, position))
                    rest ^= workers
            self._finish(rest, blocks)
        return bool(self._groups) or self._on_nodes is None

    def end(self, position: int) -> Match:
        """The walk ended before `position`."""
        for group in self._groups:
            self._finish(group.workers, group.blocks_at(position))
        return Match(self._prefixes, position if self._on_nodes is None else self._on_nodes)

    def _finish(self, workers: int, blocks: TierBlocks) -> None:
        if workers and any(blocks):
            self._prefixes.update(dict.fromkeys(bits(workers), blocks))

    def _workers(self, nodes: int) -> int:
        workers = 0
        for node in bits(nodes):
            workers |= self._workers_of.get(node, 0)
        return workers


@dataclass(slots=True)
class _Group:
    """Workers that read from the same tier since the same block."""

    workers: int
    before: TierBlocks
    tier: int
    """Which field of `TierBlocks` the blocks since then count in."""
    since: int

    def blocks_at(self, position: int) -> TierBlocks:
        counts = list(self.before)
        counts[self.tier] += position - self.since
        return TierBlocks(*counts)


def bits(members: int) -> list[Slot]:
    """The members of a set, ascending."""
    digits = f"{members:b}"[::-1]
    found = []
    slot = digits.find("1")
    while slot >= 0:
        found.append(slot)
        slot = digits.find("1", slot + 1)
    return found

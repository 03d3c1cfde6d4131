"""Prefix index: which members hold a block in which tier, and how long a prefix each can use.

Members are small integers, a set of members an int with one bit each. Blocks that follow one
another in a prompt are kept together in runs, and compared with another prompt all at once:

    prompt    0  1  2  3  4  5  6  7  8        two runs, and nobody has block 8
    runs     [A  A  A  A  A  A  B  B][C] -     A, B, C: who holds the blocks
    worker 0  █  █  █  █  █  █  █  █           alive     {0,1}       | {0} | {}
    worker 1  █  █  █  █  █  █                 prefix    0 → 8, 1 → 6
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

from cluster.conductor.holders import EXPECTED, NOBODY, Place, Slot, bits, place_of
from cluster.conductor.matching import Match, PrefixGroup, TierBlocks, Walk
from cluster.conductor.routing_keys import RoutingKeys
from cluster.conductor.run_table import RunTable
from cluster.conductor.runs import RUN_BLOCKS_MAX, Run
from kvstore.core.ids import RoutingKey
from kvstore.tiers.base import TierKind

__all__ = ["EXPECTED", "Match", "PrefixGroup", "PrefixIndex", "Slot", "TierBlocks", "bits"]

BLOCKS_MAX = 1 << 24
"""About 2 GB."""

_PIECES = 8
"""A prompt that lies in more runs than this, beyond those that its length takes, is laid out anew:
blocks of an answer come one by one."""


class PrefixIndex:
    """Pure state of one owner. Verbs are idempotent.

    Bounded by `blocks_max`: beyond it the runs go that nobody has stored into for longest. What is
    forgotten so looks as if nobody had it, until somebody stores it again: it costs a worse
    placement, nothing else.
    A batch that is in runs already costs 1 us a run and change of holders; a new block 0.2 us.
    """

    def __init__(self, blocks_max: int = BLOCKS_MAX) -> None:
        assert blocks_max >= 1
        self._blocks_max = blocks_max
        self._runs = RunTable()
        self._replicas: dict[Place, int] = {}
        self._shed = 0
        self.late_events = 0
        """That its feeds dropped."""

    def __len__(self) -> int:
        """Distinct blocks."""
        return len(self._runs)

    @property
    def shed_blocks(self) -> int:
        """Forgotten for want of room, so far."""
        return self._shed

    def stored(self, slot: Slot, tier: int, keys: Sequence[RoutingKey]) -> None:
        place, keys = place_of(slot, tier), RoutingKeys.of(keys)
        pieces = added = 0
        for run, offset, start, end in self._runs.pieces(keys):
            pieces += 1
            if run is None:
                added += self._runs.add(keys[start:end], place)
            else:
                added += self._add(run, offset, offset + end - start, place)
        if added:
            self._replicas[place] = self._replicas.get(place, 0) + added
        if pieces > _PIECES + 2 * len(keys) // RUN_BLOCKS_MAX:
            self._runs.rejoin(keys)
        while len(self._runs) > self._blocks_max:
            self._shed_oldest()

    def removed(self, slot: Slot, tier: int, keys: Sequence[RoutingKey]) -> None:
        place = place_of(slot, tier)
        if place not in self._replicas:
            return
        for run, ranges in self._runs.ranges(RoutingKeys.of(keys)).items():
            self._remove(run, ranges, place)

    def cleared(self, slot: Slot, tier: int) -> None:
        for run in self._runs.at(place_of(slot, tier)):
            self._remove(run, [(0, len(run))], place_of(slot, tier))

    def forget(self, slot: Slot) -> None:
        for tier in TierKind.DEVICE, TierKind.HOST, TierKind.DISK, EXPECTED:
            self.cleared(slot, tier)

    def runs(self) -> list[Run]:
        """All that is known, oldest first; not to be changed. Blocks come into a run when it is
        made, and leave it as they go."""
        return self._runs.runs()

    def held(self, slot: Slot, tier: int) -> Set[RoutingKey]:
        """What a member holds in a tier. Takes as long as that is much."""
        place = place_of(slot, tier)
        return {
            key
            for run in self._runs.at(place)
            for start, end, holders in run.stretches(0, len(run))
            if holders.has(place)
            for key in RoutingKeys(run.packed)[start:end]
        }

    def blocks_of(self, slot: Slot) -> int:
        """Replicas known at this member, in all its tiers."""
        tiers = (TierKind.DEVICE, TierKind.HOST, TierKind.DISK)
        return sum(self._replicas.get(place_of(slot, tier), 0) for tier in tiers)

    def match(
        self, keys: Sequence[RoutingKey], candidates: int, workers_of: Mapping[Slot, int]
    ) -> Match:
        """How long a prefix of `keys` each worker among `candidates` (a bit set) can use.

        A worker reads its own device tier and the host and disk tiers of its own node;
        `workers_of[node]` is the bit set of that node's workers. A prefix ends at the first block
        that the worker cannot use, whatever it has of the later ones.
        """
        keys = RoutingKeys.of(keys)
        walk = Walk(candidates, workers_of)
        position, blocks = 0, len(keys)
        while position < blocks:
            piece = self._runs.find(keys, position)
            if piece is None:
                break
            assert piece.run is not None
            for start, _, holders in piece.run.stretches(piece.offset, piece.offset + piece.blocks):
                if not walk.step(position + start - piece.offset, holders):
                    return walk.end(position + start - piece.offset)
            position = piece.end
        return walk.end(position)

    def _add(self, run: Run, start: int, end: int, place: Place) -> int:
        """Returns how many of these blocks the member did not have there."""
        added = run.change(start, end, lambda holders: holders.with_(place))
        self._runs.hold(run, place)
        return added

    def _remove(self, run: Run, ranges: Sequence[tuple[int, int]], place: Place) -> None:
        """Blocks that nobody has then go."""
        removed = 0
        for start, end in ranges:
            removed += run.change(start, end, lambda holders: holders.without(place))
        if not removed:
            return
        self._count_off(place, removed)
        self._runs.let_go(run, place)
        if NOBODY in run.held:
            self._runs.trim(run)

    def _count_off(self, place: Place, blocks: int) -> None:
        self._replicas[place] -= blocks
        if not self._replicas[place]:
            del self._replicas[place]

    def _shed_oldest(self) -> None:
        run = self._runs.oldest()
        for start, end, holders in run.stretches(0, len(run)):
            for place in holders.places():
                self._count_off(place, end - start)
        self._shed += len(run)
        self._runs.drop(run)

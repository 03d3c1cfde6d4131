"""What a conductor should still know after a restart, as frozen values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from cluster.conductor.cost import Kind
from cluster.conductor.holders import EXPECTED, TIERS, Place
from cluster.conductor.index import PrefixIndex, Slot
from cluster.conductor.routing_keys import RoutingKeys
from cluster.conductor.runs import Run
from cluster.conductor.types import Load, Member
from kvstore.core.ids import LayoutFingerprint, MemberId
from kvstore.core.regression import LinearState
from kvstore.tiers.base import TierKind

Learned = Mapping[Kind, LinearState]

_SLICE_RUNS = 256
_PASSES = 4


@dataclass(frozen=True, slots=True)
class KeptMember:
    slot: Slot
    """Who it is in `KeptRun.held`."""
    member: Member
    epoch: int
    load: Load
    draining: bool
    learned: Learned
    """Of itself."""


@dataclass(frozen=True, slots=True)
class KeptState:
    """All but the blocks."""

    members: Sequence[KeptMember]
    fleets: Mapping[str, Learned]
    """By the model's name."""
    answer_tokens: Mapping[str, float]
    """Mean length of the answers of each model."""
    charged: Mapping[str, float]
    """To each tenant."""


@dataclass(frozen=True, slots=True)
class KeptRun:
    """Blocks that follow one another in some prompt; [end of the stretch before, end) is held by
    `held`, members and their tiers."""

    keys: RoutingKeys
    ends: Sequence[int]
    held: Sequence[Sequence[Place]]


KeptBlocks = Mapping[MemberId, Mapping[TierKind, LayoutFingerprint]]
"""Members whose blocks are kept, with the layout of what they have in each tier."""


def kept_runs(index: PrefixIndex) -> Iterator[list[KeptRun]]:
    """All that `index` knows, in slices of about a millisecond; it may change between two of them.

    Of a member that was not reset meanwhile, the result and the events since the first slice are
    together what it holds: whatever an event was about is right once that event is taken in again,
    and all other blocks were there the whole time, in a run of which they did not leave.
    """
    seen: dict[Run, int] = {}
    for passed in range(_PASSES):
        fresh = [run for run in index.runs() if len(run) > seen.get(run, 0)]
        step = _SLICE_RUNS if passed < _PASSES - 1 else max(1, len(fresh))
        for start in range(0, len(fresh), step):
            runs = [run for run in fresh[start : start + step] if len(run)]
            seen.update((run, len(run)) for run in runs)
            yield [_kept(run) for run in runs]


def _kept(run: Run) -> KeptRun:
    stretches = run.stretches(0, len(run))
    return KeptRun(
        RoutingKeys(run.packed),
        [stretch.end for stretch in stretches],
        [
            [place for place in stretch.holders.places() if place % len(TIERS) != EXPECTED]
            for stretch in stretches
        ],
    )


def restore_run(index: PrefixIndex, run: KeptRun, slots: Mapping[Slot, Slot]) -> None:
    """Into `index`, of the members in `slots`: what they were, and what they are now.

    Whoever holds most of the run comes first, so that it is one run again.
    """
    ranges = _ranges(run)
    for place in sorted(ranges, key=lambda place: sum(s - e for s, e in ranges[place])):
        slot, tier = divmod(place, len(TIERS))
        for start, end in ranges[place] if slot in slots else ():
            index.stored(slots[slot], tier, run.keys[start:end])


def _ranges(run: KeptRun) -> dict[Place, list[tuple[int, int]]]:
    """Of each holder, as long as they can be."""
    ranges: dict[Place, list[tuple[int, int]]] = {}
    start = 0
    for end, places in zip(run.ends, run.held, strict=True):
        for place in places:
            of_place = ranges.setdefault(place, [])
            if of_place and of_place[-1][1] == start:
                of_place[-1] = of_place[-1][0], end
            else:
                of_place.append((start, end))
        start = end
    return ranges

"""All runs of an index: found by any of their keys, and by whom they are held."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

from cluster.conductor.holders import NOBODY, Place
from cluster.conductor.routing_keys import KEY_BYTES, RoutingKeys
from cluster.conductor.runs import RUN_BLOCKS_MAX, Run, in_pieces, joined
from kvstore.core.ids import RoutingKey


class Piece(NamedTuple):
    """Blocks [start, end) of a prompt are those of `run` from `offset` on; None: of no run."""

    run: Run | None
    offset: int
    start: int
    end: int

    @property
    def blocks(self) -> int:
        return self.end - self.start


class RunTable:
    """Every key is in one run at most. About 110 bytes a block where runs are long, whoever and
    however many hold it, and 500 a run."""

    def __init__(self) -> None:
        self._run_of: dict[RoutingKey, Run] = {}
        self._at: dict[Place, set[Run]] = {}
        self._order: OrderedDict[Run, None] = OrderedDict()
        """Those that somebody stored into last are last."""

    def __len__(self) -> int:
        """Blocks."""
        return len(self._run_of)

    def runs(self) -> list[Run]:
        """All, those first that nobody has stored into for longest. A copy."""
        return list(self._order)

    def at(self, place: Place) -> set[Run]:
        """Runs of which this member has any in this tier. A copy."""
        return set(self._at.get(place, ()))

    def find(self, keys: RoutingKeys, position: int) -> Piece | None:
        """The keys from `position` on, as far as one run has them; None: none has the first."""
        packed = keys.packed
        key = packed[position * KEY_BYTES : (position + 1) * KEY_BYTES]
        run = self._run_of.get(int.from_bytes(key, "little"))  # type: ignore[call-overload]
        if run is None:
            return None
        offset = run.offset_of(key)
        return Piece(run, offset, position, position + run.common(offset, packed, position))

    def pieces(self, keys: RoutingKeys) -> Iterator[Piece]:
        """Of all the keys. Looks as it goes: what is done to a piece shows in the next ones."""
        position, blocks = 0, len(keys)
        names: list[RoutingKey] = []
        while position < blocks:
            piece = self.find(keys, position)
            if piece is None:
                names = names or keys.tolist()
                piece = Piece(None, 0, position, self._unknown_until(names, position))
            yield piece
            position = piece.end

    def ranges(self, keys: RoutingKeys) -> dict[Run, list[tuple[int, int]]]:
        """Where these keys are, whatever their order: blocks [start, end) of runs, ascending and
        apart from one another."""
        first = self.find(keys, 0) if keys else None
        if first is None or first.end == 1:
            found = self._ranges_one_by_one(keys)
        else:
            found = defaultdict(list)
            for run, offset, start, end in self.pieces(keys):
                if run is not None:
                    found[run].append((offset, offset + end - start))
        return {run: _apart(ranges) for run, ranges in found.items()}

    def _ranges_one_by_one(self, keys: RoutingKeys) -> dict[Run, list[tuple[int, int]]]:
        names_in: defaultdict[Run, list[RoutingKey]] = defaultdict(list)
        names = keys.tolist()
        for name, run in zip(names, map(self._run_of.get, names), strict=True):
            if run is not None:
                names_in[run].append(name)
        return {
            run: [(offset, offset + 1) for offset in run.offsets_of(names)]
            for run, names in names_in.items()
        }

    def _unknown_until(self, names: list[RoutingKey], position: int) -> int:
        """A run's worth at most, for a later key may be the same as one of these."""
        rest = names[position : position + RUN_BLOCKS_MAX]
        if self._run_of.keys().isdisjoint(rest):
            return position + len(rest)
        return position + next(i for i, name in enumerate(rest) if name in self._run_of)

    def add(self, keys: RoutingKeys, place: Place) -> int:
        """Make a run of keys that are in none, and that one member holds. Returns how many
        different ones they are."""
        assert len(keys) <= RUN_BLOCKS_MAX
        run = Run(keys.packed, [len(keys)], [NOBODY.with_(place)])
        run_of_new = dict.fromkeys(keys.tolist(), run)
        if len(run_of_new) < len(keys):
            return self.add(RoutingKeys.of(list(run_of_new)), place)
        self._run_of.update(run_of_new)
        self._order[run] = None
        self._at.setdefault(place, set()).add(run)
        return len(keys)

    def hold(self, run: Run, place: Place) -> None:
        """This member has some of it, and stored it just now."""
        self._at.setdefault(place, set()).add(run)
        self._order.move_to_end(run)

    def let_go(self, run: Run, place: Place) -> None:
        """This member has less of it than before, or nothing."""
        if run.is_at(place):
            return
        runs = self._at[place]
        runs.discard(run)
        if not runs:
            del self._at[place]

    def trim(self, run: Run) -> None:
        """Without the blocks that nobody has."""
        blocks = len(run)
        held = [
            (start, end) for start, end, holders in run.stretches(0, blocks) if holders != NOBODY
        ]
        self._keep(run, _apart(held))

    def rejoin(self, keys: RoutingKeys) -> None:
        """Lay all these keys, each in some run, out in as few runs as possible."""
        parts = []
        for run, offset, start, end in self.pieces(RoutingKeys.of(list(dict.fromkeys(keys)))):
            assert run is not None
            last = offset + end - start
            parts.append(run.part(offset, last))
            around = (0, offset), (last, len(run))
            self._keep(run, [(first, stop) for first, stop in around if first < stop])
        self._add(joined(parts))

    def oldest(self) -> Run:
        """The one that nobody has stored into for longest."""
        return next(iter(self._order))

    def drop(self, run: Run) -> None:
        self._keep(run, ())

    def _keep(self, run: Run, ranges: Sequence[tuple[int, int]]) -> None:
        """Of this run these blocks [start, end) only, each range as a run of its own. The longest
        one stays the same object, so that the keys of the others alone are told where they are."""
        bounds = [0, *chain.from_iterable(ranges), len(run)]
        gone = [
            run.part(end, start)
            for end, start in zip(bounds[::2], bounds[1::2], strict=True)
            if end < start
        ]
        for part in gone:
            self._forget_keys(part)
        if not ranges:
            del self._order[run]
            held = run.places()
            run.packed, run.ends, run.held = b"", [0], [NOBODY]
            for place in held:
                self.let_go(run, place)
            return
        parts = sorted((run.part(start, end) for start, end in ranges), key=len)
        *moved, stays = parts
        run.packed, run.ends, run.held = stays.packed, stays.ends, stays.held
        for place in {place for part in (*gone, *moved) for place in part.places()}:
            self.let_go(run, place)
        for part in moved:
            self._add(part)

    def _add(self, run: Run) -> None:
        for part in in_pieces(run):
            self._run_of.update(dict.fromkeys(RoutingKeys(part.packed).tolist(), part))
            self._order[part] = None
            for place in part.places():
                self._at.setdefault(place, set()).add(part)

    def _forget_keys(self, run: Run) -> None:
        for key in RoutingKeys(run.packed).tolist():
            del self._run_of[key]


def _apart(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sorted, those that touch or overlap as one."""
    if len(ranges) == 1:
        return ranges
    apart: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if apart and start <= apart[-1][1]:
            apart[-1] = apart[-1][0], max(end, apart[-1][1])
        else:
            apart.append((start, end))
    return apart

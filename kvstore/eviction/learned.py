"""Workload-aware eviction: keep what is most likely to be read again for the time that it takes up
space.

The question is asked once for each run (see `runs`), not for each block: will this conversation go
on, and when? `hazard` learns the answer from the runs seen, by how often they went on before, how
much they added, how fast, and how long they are. Eviction takes the run with the lowest prospect,
tail first.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable
from itertools import groupby
from typing import Generic, TypeVar

import numpy as np

from kvstore.core.ports import Clock
from kvstore.eviction.forecast import HISTORY, Forecast
from kvstore.eviction.runs import Run, Silence

K = TypeVar("K", bound=Hashable)

_SAME_ACCESS_S = 5.0
"""A chain touched again within this time belongs to the same request, which is still being served.
"""
_TAIL_KEYS = 3
"""Whoever reads one of the last three blocks of a run goes on with it; the very last is often cut
short."""
_EXPECTED_KEYS = 1 << 16
_RANKING_TTL_S = 1.0


class Learned(Generic[K]):
    """`EvictionPolicy` that learns how conversations go on. Not thread-safe.

    Until 200 accesses have been seen the oldest run goes first.
    Costs O(1) a key, a fit of some milliseconds each hundred accesses, and a ranking of all runs at
    most once a second. Memory: a dict entry and a list slot for each key, and bounded histories.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._run_of: dict[K, Run[K]] = {}
        self._live: OrderedDict[Run[K], None] = OrderedDict()
        self._expected: OrderedDict[K, Run[K]] = OrderedDict()
        self._tails: OrderedDict[K, Run[K]] = OrderedDict()
        self._forecast = Forecast()
        self._last_block_reused = 1.0
        self._last_block_continued = 1.0
        self._ranking: deque[tuple[Run[K], int]] = deque()
        self._ranked_s = -_RANKING_TTL_S

    # What happened

    def touch(self, keys: Iterable[K]) -> None:
        chain = list(keys)
        if not chain:
            return
        now_s = self._clock()
        deepest, previous = self._continued(chain)
        start = self._own_start(chain, deepest, previous)
        above = self._reuse_heads(chain[:start], now_s)
        own = chain[start:]
        if not own:
            return
        run = previous or Run(above)
        if previous is not None:
            self._last_block_continued += 1
            self._last_block_reused += chain[deepest] == previous.last
            run = self._continue(previous, above, own)
        self._rejoin(run, own)
        self._begin_silence(run, now_s, new=len(chain) - 1 - deepest, length=len(chain))
        run.last = chain[-1]
        self._remember_tail(run, chain, first_own=max(deepest + 1, start))
        self._take_over(run, own)

    def insert(self, keys: Iterable[K]) -> None:
        batch = list(keys)
        unexpected = [key for key in batch if key not in self._expected]
        if unexpected:
            self.touch(unexpected)
        for key in batch:
            run = self._expected.pop(key, None)
            if run is not None:  # else: came twice in the batch, or was here
                self._run_of[key] = run
                run.keys.append(key)
                self._enliven(run)

    def remove(self, keys: Iterable[K]) -> None:
        for key in keys:
            self._run_of.pop(key, None)

    def __len__(self) -> int:
        return len(self._run_of)

    def __repr__(self) -> str:
        return f"Learned({len(self)} keys in {len(self._live)} runs)"

    def _continued(self, chain: list[K]) -> tuple[int, Run[K] | None]:
        """The deepest known key of the chain, and the run that this access goes on with."""
        for position in range(len(chain) - 1, -1, -1):
            key = chain[position]
            run = self._tails.get(key)
            if run is not None:
                return position, run
            if key in self._run_of:
                return position, None
        return -1, None

    def _own_start(self, chain: list[K], deepest: int, previous: Run[K] | None) -> int:
        """Where the part of the chain begins that belongs to no other run."""
        for position in range(deepest + 1):
            run = self._run_of.get(chain[position])
            if run is None or run is previous:
                return position
        return deepest + 1

    def _reuse_heads(self, keys: list[K], now_s: float) -> Run[K] | None:
        """Runs that this access shares with others: each is used again; one that is left in its
        middle is parted."""
        above = None
        for run, group in groupby(keys, key=self._run_of.__getitem__):
            shared = list(group)
            if run.keys[-1:] != shared[-1:]:
                run = self._part(run, shared)
            self._begin_silence(run, now_s, new=0, length=len(shared), head=True)
            self._enliven(run)
            above = run
        return above

    def _part(self, lower: Run[K], shared: list[K]) -> Run[K]:
        """Cut `lower` behind the last shared block; returns the upper part."""
        upper = Run(lower.above)
        taken = set(shared)
        upper.keys = [key for key in lower.keys if key in taken and self._run_of.get(key) is lower]
        lower.keys = [key for key in lower.keys if key not in taken]
        self._run_of.update(dict.fromkeys(upper.keys, upper))
        self._retire(lower)
        lower.above = upper
        if lower.keys:
            self._enliven(lower)
        return upper

    def _enliven(self, run: Run[K]) -> None:
        """It has resident blocks, and is the newest."""
        if run not in self._live and run.above is not None:
            run.above.live_below += 1
        self._live[run] = None
        self._live.move_to_end(run)

    def _retire(self, run: Run[K]) -> None:
        if run in self._live:
            del self._live[run]
            if run.above is not None:
                run.above.live_below -= 1

    def _leave_behind(self, run: Run[K], kept: set[K]) -> None:
        """The end of the last turn that the next one does not contain stays as a run nobody waits
        for."""
        left = Run(run)
        while run.keys and run.keys[-1] not in kept:
            key = run.keys.pop()
            if self._run_of.get(key) is run:
                self._run_of[key] = left
                left.keys.insert(0, key)
        if left.keys:
            self._enliven(left)

    def _continue(self, previous: Run[K], above: Run[K] | None, own: list[K]) -> Run[K]:
        """The run of the next turn: `previous`, or where that does not hang from `above`, a new one
        that goes on with its history."""
        if previous.above is above:
            self._leave_behind(previous, set(own))
            return previous
        run = Run(above)
        run.turn, run.gap_s, run.silence = previous.turn, previous.gap_s, previous.silence
        previous.silence = None
        return run

    def _rejoin(self, run: Run[K], own: list[K]) -> None:
        """Blocks of other runs that this access goes on from come to its run: what is new must not
        hang below a run that may go before it."""
        strays = [key for key in own if self._run_of.get(key, run) is not run]
        for key in strays:
            lower = self._run_of[key]
            lower.keys = [other for other in lower.keys if other != key]
            self._run_of[key] = run
            if not lower.keys:
                self._dissolve(lower, run)
            elif lower.above is not run:
                self._hang(lower, run)
        if strays:
            shown = set(own)
            kept = [key for key in run.keys if key not in shown]
            run.keys = kept + [key for key in own if self._run_of.get(key) is run]

    def _dissolve(self, lower: Run[K], run: Run[K]) -> None:
        """What continued `lower`, which has no blocks any more, continues `run`."""
        for other in [other for other in self._live if other.above is lower]:
            self._hang(other, run)
        self._retire(lower)

    def _hang(self, lower: Run[K], above: Run[K]) -> None:
        """`lower` continues `above`, unless that would close a circle."""
        ancestor: Run[K] | None = above
        while ancestor is not None:
            if ancestor is lower:
                return
            ancestor = ancestor.above
        if lower.above is not None:
            lower.above.live_below -= 1
        lower.above = above
        above.live_below += 1

    def _begin_silence(
        self, run: Run[K], now_s: float, *, new: int, length: int, head: bool = False
    ) -> None:
        """The run is read now: one silence ends and another begins, unless this is still the same
        request."""
        if run.silence is not None:
            gap_s = now_s - run.silence.started_s
            if gap_s < _SAME_ACCESS_S:
                run.silence.started_s = now_s
                return
            run.silence.ended_s = now_s
            run.gap_s = gap_s
            run.turn += 1
        run.new, run.length = new, length
        run.silence = Silence(now_s, run.levels(head=head))
        self._forecast.saw(run.silence)

    def _take_over(self, run: Run[K], own: list[K]) -> None:
        for key in own:
            if key not in self._run_of:
                self._expected[key] = run
        while len(self._expected) > _EXPECTED_KEYS:
            self._expected.popitem(last=False)
        if run.keys:
            self._enliven(run)

    def _remember_tail(self, run: Run[K], chain: list[K], first_own: int) -> None:
        """Who reads these goes on with `run`. Blocks that others brought in (a shared system
        prompt) tell nothing, unless they were the tail that this run itself goes on with."""
        first_tail = max(len(chain) - _TAIL_KEYS, 0)
        for position, key in enumerate(chain):
            was_tail = self._tails.pop(key, None) is not None
            if position >= first_tail and (position >= first_own or was_tail):
                self._tails[key] = run
        while len(self._tails) > _TAIL_KEYS * HISTORY:
            self._tails.popitem(last=False)

    # What goes first

    def victims(self, count: int, evictable: Callable[[K], bool]) -> list[K]:
        """See `EvictionPolicy.victims`. What is above a key that is not evictable stays too."""
        if self._clock() - self._ranked_s >= _RANKING_TTL_S:
            self._rank()
        chosen: list[K] = []
        progress = True
        while len(chosen) < count:
            if self._ranking:
                taken = self._take_from_next(count - len(chosen), evictable)
                chosen += taken
                progress = progress or bool(taken)
            elif progress:
                self._rank()
                progress = False
            else:
                break
        return chosen

    def _take_from_next(self, count: int, evictable: Callable[[K], bool]) -> list[K]:
        run, limit = self._ranking.popleft()
        if run.live_below:
            return []  # its turn comes in a later ranking, after what goes on with it
        wanted = min(limit, count)
        taken = self._take_tail(run, wanted, evictable)
        if len(taken) == wanted < limit:
            self._ranking.appendleft((run, limit - wanted))
        return taken

    def _take_tail(self, run: Run[K], count: int, evictable: Callable[[K], bool]) -> list[K]:
        taken: list[K] = []
        while run.keys:
            key = run.keys[-1]
            if self._run_of.get(key) is run:
                if len(taken) >= count or not evictable(key):
                    break
                del self._run_of[key]
                taken.append(key)
            run.keys.pop()
        if not run.keys:
            self._retire(run)
        return taken

    def _rank(self) -> None:
        """Runs in the order in which they should go. The last block of a run has a rank of its own:
        it is often cut short, and then nobody will read it again."""
        now_s = self._ranked_s = self._clock()
        can_tell = self._forecast.refit_if_due(now_s)
        for run in list(self._live):
            self._take_tail(run, 0, evictable=bool)  # forgets removed keys only
        runs = list(self._live)
        if not can_tell or not runs:
            self._ranking = deque((run, len(run.keys)) for run in runs)
            return
        prospects = self._forecast.prospects([run.silence for run in runs], now_s)
        whole = np.array([run.keys[-1] == run.last for run in runs], dtype=bool)
        last_block = self._last_block_reused / self._last_block_continued
        order = np.argsort(np.concatenate([prospects, prospects[whole] * last_block]))
        entries = [(run, len(run.keys)) for run in runs]
        entries += [(run, 1) for run, is_whole in zip(runs, whole, strict=True) if is_whole]
        self._ranking = deque(entries[i] for i in order)

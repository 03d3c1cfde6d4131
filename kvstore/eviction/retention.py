"""Retention: what its writer asked to be kept goes after everything of lower priority, for the time
asked."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count as counter
from itertools import groupby
from math import inf
from typing import Generic, TypeVar

from kvstore.core.errors import InvalidArgumentError
from kvstore.core.ports import Clock
from kvstore.eviction.base import EvictionPolicy
from kvstore.eviction.lru import LRU

K = TypeVar("K", bound=Hashable)

DEFAULT_PRIORITY = 35
PRIORITY_MAX = 100
_DEAD_ENDS_MAX = 4096
"""Ends that no longer count, above which their heap is built anew."""


@dataclass(frozen=True, slots=True)
class Hold:
    """A priority, and when it falls back to the default one."""

    priority: int
    end_s: float


NO_HOLD = Hold(DEFAULT_PRIORITY, inf)


def join(head: Hold, tail: Hold) -> Hold:
    """What a block needs that has `head` and stands before one that has `tail`: never to rank below
    it, now or when either is over."""
    if tail.priority > DEFAULT_PRIORITY:
        needed = tail
        if head.priority > DEFAULT_PRIORITY:
            needed = Hold(max(head.priority, tail.priority), max(head.end_s, tail.end_s))
    elif head.priority >= DEFAULT_PRIORITY:
        return head
    elif tail.priority == DEFAULT_PRIORITY:
        return NO_HOLD
    else:
        needed = Hold(max(head.priority, tail.priority), min(head.end_s, tail.end_s))
    return head if needed == head else needed


class Retention(Generic[K]):
    """`EvictionPolicy` that puts priorities before the order of another policy. Not thread-safe.

    Lower priorities go first. The blocks of default priority stay with the policy that is wrapped;
    those of any other one leave it for a line of their own, least recently used first. Nothing
    retained costs nothing: every call goes straight through.

    A head never ranks below its tail: a block has at least the priority of the blocks that follow
    it in a chain that is shown as a whole, to `retain` or later to `touch`, and for at least as
    long. So whoever retains the middle of a chain shows the whole of it to `touch` next.

    Two cases are left, in which a tail may outlive its head, be out of reach, and go in its turn:
    a head was given up whose tails were not shown since; or the retention of a head ended, and the
    policy of the default priority learns of it as of a new block, while tails came meanwhile.
    """

    def __init__(
        self, policy: EvictionPolicy[K], clock: Clock, resident: Callable[[K], bool]
    ) -> None:
        """`resident` tells which keys were inserted and have not left."""
        self._policy = policy
        self._clock = clock
        self._resident = resident
        self._holds: dict[K, Hold] = {}
        """Of resident keys that have not the default priority."""
        self._lines: dict[int, LRU[K]] = {}
        self._ends: list[tuple[float, int, K]] = []
        self._serials = counter()

    def retain(self, keys: Sequence[K], priority: int, duration_s: float | None) -> None:
        """Give resident keys, consecutive ones of a chain, a priority 0-100 for a time (None: until
        evicted). Raises InvalidArgumentError for a priority out of range or a duration that is not
        positive."""
        if not 0 <= priority <= PRIORITY_MAX:
            raise InvalidArgumentError(f"priority must lie in 0..{PRIORITY_MAX}, got {priority}")
        if duration_s is not None and duration_s <= 0:
            raise InvalidArgumentError(f"duration_s must be positive, got {duration_s}")
        end_s = inf if duration_s is None else self._clock() + duration_s
        hold = NO_HOLD if priority == DEFAULT_PRIORITY else Hold(priority, end_s)
        self._move(keys, hold)

    def touch(self, keys: Iterable[K]) -> None:
        if not self._holds:
            self._policy.touch(keys)
            return
        chain = list(keys)
        self._lift(chain)
        self._policy.touch(chain)  # all of it, so that it knows what follows what
        parts: defaultdict[int, list[K]] = defaultdict(list)
        for key in chain:
            if key in self._holds:
                parts[self._holds[key].priority].append(key)
        for priority, part in parts.items():
            self._lines[priority].touch(part)

    def insert(self, keys: Iterable[K]) -> None:
        self._policy.insert(keys)

    def remove(self, keys: Iterable[K]) -> None:
        if not self._holds:
            self._policy.remove(keys)
            return
        batch = list(keys)
        self._policy.remove(batch)
        for key in batch:
            if (hold := self._holds.pop(key, None)) is not None:
                self._lines[hold.priority].remove([key])

    def victims(self, count: int, evictable: Callable[[K], bool]) -> list[K]:
        """See `EvictionPolicy.victims`."""
        if not self._holds:
            return self._policy.victims(count, evictable)
        self._end_holds()
        chosen: list[K] = []
        for priority in sorted({*self._lines, DEFAULT_PRIORITY}):
            chosen += self._order(priority).victims(count - len(chosen), evictable)
            if len(chosen) >= count:
                break
        for key in chosen:
            self._holds.pop(key, None)
        return chosen

    def __len__(self) -> int:
        return len(self._policy) + len(self._holds)

    def __repr__(self) -> str:
        return f"Retention({self._policy!r}, {len(self._holds)} retained)"

    def _order(self, priority: int) -> EvictionPolicy[K]:
        return self._policy if priority == DEFAULT_PRIORITY else self._lines[priority]

    def _end_s(self, key: K) -> float:
        return self._holds.get(key, NO_HOLD).end_s

    def _lift(self, chain: Sequence[K]) -> None:
        """No key of the chain ranks below one that follows it; what is not here (yet) counts as of
        default priority."""
        needed: list[tuple[K, Hold]] = []
        floor: Hold | None = None
        for key in reversed(chain):
            hold = self._holds.get(key, NO_HOLD)
            joined = hold if floor is None else join(hold, floor)
            if joined is not hold and self._resident(key):
                needed.append((key, joined))
            floor = joined
        for lifted, group in groupby(reversed(needed), key=lambda item: item[1]):
            self._move([key for key, _ in group], lifted)

    def _move(self, keys: Sequence[K], hold: Hold) -> None:
        if hold is NO_HOLD:
            keys = [key for key in keys if key in self._holds]
        self._policy.remove(keys)
        for key in keys:
            if (old := self._holds.pop(key, None)) is not None:
                self._lines[old.priority].remove([key])
        if hold is NO_HOLD:
            self._policy.touch(keys)  # they follow one another: the policy is to know
            self._policy.insert(keys)
            return
        self._holds.update(dict.fromkeys(keys, hold))
        self._lines.setdefault(hold.priority, LRU()).insert(keys)
        if hold.end_s < inf:
            for key in reversed(keys):
                heapq.heappush(self._ends, (hold.end_s, next(self._serials), key))
            self._forget_dead_ends()

    def _end_holds(self) -> None:
        now_s = self._clock()
        ended = []
        while self._ends and self._ends[0][0] <= now_s:
            end_s, _, key = heapq.heappop(self._ends)
            if self._end_s(key) == end_s:
                ended.append(key)
        if ended:
            self._move(list(dict.fromkeys(reversed(ended))), NO_HOLD)

    def _forget_dead_ends(self) -> None:
        if len(self._ends) > 2 * len(self._holds) + _DEAD_ENDS_MAX:
            living = {end[2]: end for end in self._ends if self._end_s(end[2]) == end[0]}
            self._ends = sorted(living.values(), key=lambda end: end[:2])

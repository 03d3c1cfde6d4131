"""Retention: what its writer asked to be kept goes after everything of lower priority, for the time
asked."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Iterable
from itertools import count as counter
from typing import Generic, TypeVar

from kvstore.core.errors import InvalidArgumentError
from kvstore.core.ports import Clock
from kvstore.eviction.base import EvictionPolicy

K = TypeVar("K", bound=Hashable)

DEFAULT_PRIORITY = 35
_PRIORITY_MAX = 100


class Retention(Generic[K]):
    """`EvictionPolicy` of one policy for each priority in use. Not thread-safe.

    Lower priorities go first; within one, its policy decides. A key falls back to the default
    priority when its duration is over. `make` makes the policy of a priority.
    """

    def __init__(self, make: Callable[[], EvictionPolicy[K]], clock: Clock) -> None:
        self._make = make
        self._clock = clock
        self._classes: dict[int, EvictionPolicy[K]] = {DEFAULT_PRIORITY: make()}
        self._retained: dict[K, tuple[int, int]] = {}
        """Priority and serial number, of keys that have not the default one."""
        self._ends: list[tuple[float, int, K]] = []
        self._serials = counter()

    def retain(self, keys: Iterable[K], priority: int, duration_s: float | None) -> None:
        """Give resident keys a priority 0-100, for a time (None: until evicted).

        Raises InvalidArgumentError for a priority out of range or a duration that is not positive.
        """
        if not 0 <= priority <= _PRIORITY_MAX:
            raise InvalidArgumentError(f"priority must lie in 0..{_PRIORITY_MAX}, got {priority}")
        if duration_s is not None and duration_s <= 0:
            raise InvalidArgumentError(f"duration_s must be positive, got {duration_s}")
        batch = list(keys)
        self._move(batch, priority)
        if duration_s is not None:
            end_s = self._clock() + duration_s
            for key in batch:
                if key in self._retained:
                    heapq.heappush(self._ends, (end_s, self._retained[key][1], key))

    def touch(self, keys: Iterable[K]) -> None:
        chain = list(keys)
        for policy in self._classes.values():
            policy.touch(chain)

    def insert(self, keys: Iterable[K]) -> None:
        self._classes[DEFAULT_PRIORITY].insert(keys)

    def remove(self, keys: Iterable[K]) -> None:
        batch = list(keys)
        for policy in self._classes.values():
            policy.remove(batch)
        for key in batch:
            self._retained.pop(key, None)

    def victims(self, count: int, evictable: Callable[[K], bool]) -> list[K]:
        """See `EvictionPolicy.victims`."""
        self._end_retention()
        chosen: list[K] = []
        for priority in sorted(self._classes):
            chosen += self._classes[priority].victims(count - len(chosen), evictable)
            if len(chosen) >= count:
                break
        for key in chosen:
            self._retained.pop(key, None)
        return chosen

    def __len__(self) -> int:
        return sum(map(len, self._classes.values()))

    def __repr__(self) -> str:
        return f"Retention({ {p: len(c) for p, c in sorted(self._classes.items())} })"

    def _move(self, keys: list[K], priority: int) -> None:
        for policy in self._classes.values():
            policy.remove(keys)
        for key in keys:
            if priority == DEFAULT_PRIORITY:
                self._retained.pop(key, None)
            else:
                self._retained[key] = (priority, next(self._serials))
        self._classes.setdefault(priority, self._make()).insert(keys)

    def _end_retention(self) -> None:
        now_s = self._clock()
        ended = []
        while self._ends and self._ends[0][0] <= now_s:
            _, serial, key = heapq.heappop(self._ends)
            if self._retained.get(key, (0, -1))[1] == serial:
                ended.append(key)
        if ended:
            self._move(ended, DEFAULT_PRIORITY)

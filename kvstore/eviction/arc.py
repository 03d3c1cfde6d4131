"""ARC: a recency list and a frequency list whose shares follow the misses.

Source: Megiddo and Modha, 'ARC: A Self-Tuning, Low Overhead Replacement Cache' (FAST'03).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class ARC(Generic[K]):
    """`EvictionPolicy` balancing recency and frequency. Wrap in `PrefixClosed`. Not thread-safe.

    The capacity of the paper is the number of resident keys here: a tier bounds bytes, not keys.
    """

    def __init__(self) -> None:
        self._recent: OrderedDict[K, None] = OrderedDict()
        self._frequent: OrderedDict[K, None] = OrderedDict()
        self._recent_ghosts: OrderedDict[K, None] = OrderedDict()
        self._frequent_ghosts: OrderedDict[K, None] = OrderedDict()
        self._recent_target = 0.0

    def touch(self, keys: Iterable[K]) -> None:
        for key in list(keys)[::-1]:
            if key in self._recent:
                del self._recent[key]
                self._frequent[key] = None
            elif key in self._frequent:
                self._frequent.move_to_end(key)

    def insert(self, keys: Iterable[K]) -> None:
        for key in list(keys)[::-1]:
            self._insert_one(key)

    def _insert_one(self, key: K) -> None:
        recent_ghosts, frequent_ghosts = len(self._recent_ghosts), len(self._frequent_ghosts)
        if key in self._recent_ghosts:
            del self._recent_ghosts[key]
            step = max(1.0, frequent_ghosts / recent_ghosts)
            self._recent_target = min(self._recent_target + step, len(self))
            self._frequent[key] = None
        elif key in self._frequent_ghosts:
            del self._frequent_ghosts[key]
            step = max(1.0, recent_ghosts / frequent_ghosts)
            self._recent_target = max(self._recent_target - step, 0.0)
            self._frequent[key] = None
        else:
            self._recent[key] = None

    def remove(self, keys: Iterable[K]) -> None:
        for key in keys:
            self._recent.pop(key, None)
            self._frequent.pop(key, None)

    def victims(self, count: int, evictable: Callable[[K], bool]) -> list[K]:
        """See `EvictionPolicy.victims`."""
        chosen: list[K] = []
        while len(chosen) < count:
            key = self._next_victim(evictable)
            if key is None:
                break
            chosen.append(key)
        return chosen

    def _next_victim(self, evictable: Callable[[K], bool]) -> K | None:
        lines = [(self._recent, self._recent_ghosts), (self._frequent, self._frequent_ghosts)]
        if len(self._recent) <= self._recent_target:
            lines.reverse()
        for line, ghosts in lines:
            key = next((key for key in line if evictable(key)), None)
            if key is not None:
                del line[key]
                ghosts[key] = None
                while len(ghosts) > len(self):
                    ghosts.popitem(last=False)
                return key
        return None

    def __len__(self) -> int:
        return len(self._recent) + len(self._frequent)

    def __repr__(self) -> str:
        return f"ARC({len(self._recent)} recent, {len(self._frequent)} frequent)"

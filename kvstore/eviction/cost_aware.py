"""Greedy-Dual-Size-Frequency: keep what is used often and dear to compute again, for its size.

Source: Cherkasova, 'Improving WWW Proxies Performance with Greedy-Dual-Size-Frequency' (1998).
Blocks of a tier have one size; what differs is the cost: attention over everything before it makes
a late block dearer than an early one.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from itertools import count as counter
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

_EXPECTED_KEYS = 1 << 16


class CostAware(Generic[K]):
    """`EvictionPolicy` by uses x recompute cost, aged by what was evicted before. Wrap in
    `PrefixClosed`. Not thread-safe.

    A key ranks no lower than what continues it, so that the tail of a chain comes up first.
    `cost(position)` is the relative cost of computing the block at that position of its chain.
    """

    def __init__(self, cost: Callable[[int], float]) -> None:
        self._cost = cost
        self._uses: dict[K, int] = {}
        self._expected: OrderedDict[K, float] = OrderedDict()
        """Keys seen in chains but not here yet, and the priority that they will have."""
        self._stamp: dict[K, int] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._stamps = counter()
        self._inflation = 0.0

    def touch(self, keys: Iterable[K]) -> None:
        floor = 0.0
        for position, key in reversed(list(enumerate(keys))):
            uses = self._uses.get(key, 0) + 1
            floor = max(floor, self._inflation + uses * self._cost(position))
            if uses > 1:
                self._uses[key] = uses
                self._rank(key, floor)
            else:
                self._expected[key] = floor
        while len(self._expected) > _EXPECTED_KEYS:
            self._expected.popitem(last=False)

    def insert(self, keys: Iterable[K]) -> None:
        batch = list(keys)
        unexpected = [key for key in batch if key not in self._expected]
        if unexpected:
            self.touch(unexpected)
        for key in reversed(batch):
            self._uses[key] = 1
            self._rank(key, self._expected.pop(key))

    def remove(self, keys: Iterable[K]) -> None:
        for key in keys:
            if self._uses.pop(key, None) is not None:
                del self._stamp[key]

    def victims(self, count: int, evictable: Callable[[K], bool]) -> list[K]:
        """See `EvictionPolicy.victims`."""
        chosen: list[K] = []
        passed_over: list[tuple[float, int, K]] = []
        while len(chosen) < count and self._heap:
            entry = heapq.heappop(self._heap)
            priority, stamp, key = entry
            if self._stamp.get(key) != stamp:
                continue
            if not evictable(key):
                passed_over.append(entry)
                continue
            self._inflation = priority
            self.remove([key])
            chosen.append(key)
            self._put_back(passed_over)  # it may have been what held them
        self._put_back(passed_over)
        return chosen

    def __len__(self) -> int:
        return len(self._uses)

    def __repr__(self) -> str:
        return f"CostAware({len(self)} keys)"

    def _put_back(self, entries: list[tuple[float, int, K]]) -> None:
        while entries:
            heapq.heappush(self._heap, entries.pop())

    def _rank(self, key: K, priority: float) -> None:
        """Old entries of the key stay in the heap, told by their stamp, until half of it is old."""
        stamp = self._stamp[key] = next(self._stamps)
        heapq.heappush(self._heap, (priority, stamp, key))
        if len(self._heap) > 2 * len(self._uses) + 64:
            self._heap = [entry for entry in self._heap if self._stamp.get(entry[2]) == entry[1]]
            heapq.heapify(self._heap)

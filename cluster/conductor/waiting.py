"""Requests that wait for a worker to have time for them.

```
 priority 10:   tenant a: [deadline 3.1][deadline 4.0]     strictly first
                tenant b: [deadline 2.5]
 priority  0:   tenant a: [deadline 1.0]                   inside a class: the tenant charged least;
                                                           of one tenant: the earliest deadline
```
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count

from cluster.conductor.fairness import FairShare
from cluster.conductor.types import Placement, Request
from kvstore.core.errors import KVStoreError
from kvstore.core.ids import MemberId, RequestId


@dataclass(frozen=True, slots=True)
class Waiting:
    request: Request
    arrived_s: float
    deadline_s: float
    """It is refused if it was not placed by then."""
    avoid: frozenset[MemberId]
    """Workers that it failed on before."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a request that waited."""

    request_id: RequestId
    outcome: Placement | KVStoreError


@dataclass(frozen=True, slots=True)
class QueueLimits:
    requests_max: int = 1024
    """So many wait at most; 0: none does."""
    wait_s: float = 2.0
    """And so long."""
    ahead_s: float = 1.0
    """Workers are given work for so long ahead; what is beyond it waits, and can be overtaken."""
    dispatch_every_s: float = 0.05


QUEUE_LIMITS = QueueLimits()


_Heap = list[tuple[float, int, RequestId]]


class WaitingRoom:
    """Bounded: one more than `requests_max` pushes out the last in order, itself or another."""

    def __init__(self, requests_max: int, fair: FairShare) -> None:
        self._requests_max = requests_max
        self._fair = fair
        self._waiting: dict[RequestId, Waiting] = {}
        self._classes: dict[int, dict[str, _Heap]] = {}
        self._numbers = count()

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Waiting]:
        return iter(self._waiting.values())

    def add(self, waiting: Waiting) -> Waiting | None:
        """Returns who is pushed out for it, perhaps itself."""
        request = waiting.request
        assert request.request_id not in self._waiting
        tenants = self._classes.setdefault(request.priority, {})
        self._fair.lift(request.tenant, tenants)
        self._waiting[request.request_id] = waiting
        entry = (waiting.deadline_s, next(self._numbers), request.request_id)
        heappush(tenants.setdefault(request.tenant, []), entry)
        if len(self._waiting) <= self._requests_max:
            return None
        last = self._last()
        self.remove(last.request.request_id)
        return last

    def first(self) -> Waiting | None:
        """Who goes next; stays until it is removed."""
        for priority in sorted(self._classes, reverse=True):
            tenants = self._classes[priority]
            for tenant in sorted(tenants, key=lambda name: (self._fair.charged(name), name)):
                if (waiting := self._head(tenants[tenant])) is not None:
                    return waiting
                del tenants[tenant]
            del self._classes[priority]
        return None

    def remove(self, request_id: RequestId) -> Waiting | None:
        """None if it does not wait."""
        return self._waiting.pop(request_id, None)

    def overdue(self, now_s: float) -> list[Waiting]:
        """Remove and return all whose deadline is over."""
        late = [w for w in self._waiting.values() if w.deadline_s <= now_s]
        for waiting in late:
            self.remove(waiting.request.request_id)
        return late

    def _head(self, heap: _Heap) -> Waiting | None:
        while heap:
            deadline_s, _, request_id = heap[0]
            waiting = self._waiting.get(request_id)
            if waiting is not None and waiting.deadline_s == deadline_s:
                return waiting
            heappop(heap)
        return None

    def _last(self) -> Waiting:
        """Lowest class, tenant charged most, latest deadline; of equal ones who came last."""
        return max(
            reversed(self._waiting.values()),
            key=lambda w: (-w.request.priority, self._fair.charged(w.request.tenant), w.deadline_s),
        )

"""The queue that both schedulers keep: who waits, who is admitted, and in whose order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from model_runner.types import Request


@dataclass(frozen=True, slots=True, order=True)
class Rank:
    """The smaller one goes first."""

    value: int
    number: int
    """In the order of arrival; no two are alike."""


class RequestQueue:
    """Waiting and running requests, each in the order of their ranks.

        rank = start + work left, then the order of arrival

    `start` is given with the request and grows with time, so that each request is overtaken by
    finitely many others: whoever waits gains on all that come later.
    Pure; owned by the engine's thread. Bounded by the requests that an engine holds. Cost: a sort
    of what waits or runs, a step.
    """

    def __init__(
        self, max_running: int, *, work_left: Callable[[Request], int] = lambda request: 0
    ) -> None:
        assert max_running >= 1
        self._max_running = max_running
        self._work_left = work_left
        self._num_added = 0
        self._start: dict[Request, Rank] = {}
        self._waiting: list[Request] = []
        self._running: list[Request] = []

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def add(self, request: Request, start: int) -> None:
        assert request not in self._start
        self._start[request] = Rank(start, self._num_added)
        self._num_added += 1
        self._waiting.append(request)

    def remove(self, request: Request) -> None:
        """Idempotent."""
        if self._start.pop(request, None) is None:
            return
        queue = self._running if request in self._running else self._waiting
        queue.remove(request)

    def running(self) -> list[Request]:
        """First in rank first."""
        return sorted(self._running, key=self._rank)

    def is_running(self, request: Request) -> bool:
        return request in self._running

    def last_after(self, request: Request) -> Request | None:
        """The last in rank of those that run and whose blocks can be taken, if it comes after
        `request`."""
        settled = [one for one in self._running if not one.loading]
        last = max(settled, key=self._rank, default=request)
        return last if self._rank(last) > self._rank(request) else None

    def admit(self, fits: Callable[[Request], bool]) -> None:
        """First in rank first; nobody overtakes one that does not fit, so that room is not given
        away in small pieces before it."""
        self._waiting.sort(key=self._rank)
        while self._waiting and len(self._running) < self._max_running:
            if not fits(self._waiting[0]):
                return
            self._running.append(self._waiting.pop(0))

    def put_back(self, request: Request) -> None:
        """It runs no more, and waits at its rank: before all that it was admitted before."""
        self._running.remove(request)
        self._waiting.append(request)

    def _rank(self, request: Request) -> Rank:
        start = self._start[request]
        return Rank(start.value + self._work_left(request), start.number)

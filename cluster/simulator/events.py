"""The virtual clock, and what happens when on it."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count

Action = Callable[[], None]


class Timeline:
    """Runs actions in order of their time, and of their being planned where times are equal.

    Single-threaded. Time only moves in `run`, from one action to the next. It is the `Clock` of
    everything in the simulation.
    """

    def __init__(self) -> None:
        self.now_s = 0.0
        self._heap: list[tuple[float, int, bool, Action]] = []
        self._order = count()
        self._work = 0
        """Actions planned that are not in the background."""
        self.events = 0

    def __call__(self) -> float:
        return self.now_s

    def at(self, time_s: float, action: Action, *, background: bool = False) -> None:
        """Run `action` at `time_s`; now, after what is planned for now, if that is in the past.

        `background`: it watches, or goes on for ever, and is no reason to go on alone.
        """
        entry = (max(time_s, self.now_s), next(self._order), background, action)
        heapq.heappush(self._heap, entry)
        self._work += not background

    def after(self, delay_s: float, action: Action, *, background: bool = False) -> None:
        self.at(self.now_s + delay_s, action, background=background)

    def run(self, until: Callable[[], bool]) -> None:
        """Until `until()`, or only background is left."""
        while self._work and not until():
            self.now_s, _, background, action = heapq.heappop(self._heap)
            self._work -= not background
            self.events += 1
            action()

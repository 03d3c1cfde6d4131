"""How long a worker will be busy with what it was given already."""

from __future__ import annotations

_SETTLE_S = 1.0
"""A request needs this long, at most, to show in the load that its worker reports."""


class Backlog:
    """Predicted seconds of prefill routed to a worker, worked off as time goes by.

        route(0.3 s)  route(0.2 s)            route(0.1 s)
        ├─────────────┴──────────┤  idle      ├────┤
        now                 busy until

    Completions come long after prefill ended (after decoding), so the clock works it off instead,
    and a report of an idle worker corrects a prediction that was too long.
    """

    def __init__(self) -> None:
        self._busy_until_s = 0.0
        self._routed_s = 0.0

    def add(self, now_s: float, work_s: float) -> None:
        self._busy_until_s = max(now_s, self._busy_until_s) + work_s
        self._routed_s = now_s

    def waiting_s(self, now_s: float) -> float:
        return max(0.0, self._busy_until_s - now_s)

    def idle(self, now_s: float) -> None:
        """The worker reports that it has nothing to do."""
        if now_s - self._routed_s >= _SETTLE_S:
            self._busy_until_s = now_s

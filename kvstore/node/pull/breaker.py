"""Whether to ask a peer at all: after failures, for a while, not."""

from __future__ import annotations

from enum import StrEnum

from kvstore.core.ports import Clock

MAX_FAILURES = 3
"""Failures in a row that open the breaker. A timeout opens it at once: it cost a whole deadline."""
FIRST_PAUSE_S = 0.5
MAX_PAUSE_S = 30.0


class BreakerState(StrEnum):
    """As in `PeerStatistics.breaker`."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class CircuitBreaker:
    """Pure; one peer's. A caller that was admitted says how it went, once: `succeeded`, `failed` or
    `given_up`.

        CLOSED ──failures, or a timeout──▶ OPEN ──pause over, one is admitted──▶ HALF_OPEN
           ▲                                 ▲                                       │
           └──────────── success ────────────┼──── failure: twice the pause ─────────┤
                                             └──── given up: the same pause ─────────┘

    Calls that were admitted before it opened may end later: their success closes it, for the peer
    lives; their failure tells nothing new.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._num_failures = 0
        self._pause_s = FIRST_PAUSE_S
        self._probe_at = 0.0
        self._state = BreakerState.CLOSED

    @property
    def state(self) -> BreakerState:
        return self._state

    @property
    def ready(self) -> bool:
        """Whether `admit` would say yes."""
        if self._state is BreakerState.OPEN:
            return self._clock() >= self._probe_at
        return self._state is BreakerState.CLOSED

    def admit(self) -> bool:
        """Whether the peer may be asked now. While half open, one caller at a time."""
        if not self.ready:
            return False
        if self._state is BreakerState.OPEN:
            self._state = BreakerState.HALF_OPEN
        return True

    def succeeded(self) -> None:
        self._state = BreakerState.CLOSED
        self._num_failures = 0
        self._pause_s = FIRST_PAUSE_S

    def failed(self, *, timed_out: bool) -> None:
        if self._state is BreakerState.HALF_OPEN:
            self._pause_s = min(2 * self._pause_s, MAX_PAUSE_S)
            self._open()
        elif self._state is BreakerState.CLOSED:
            self._num_failures += 1
            if timed_out or self._num_failures >= MAX_FAILURES:
                self._open()

    def given_up(self) -> None:
        """The caller did not wait for the end."""
        if self._state is BreakerState.HALF_OPEN:
            self._open()

    def _open(self) -> None:
        self._state = BreakerState.OPEN
        self._num_failures = 0
        self._probe_at = self._clock() + self._pause_s

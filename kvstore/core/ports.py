"""What pure code needs from the world, passed in so that tests own it."""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    """Monotonic seconds. `kvstore.testing.ManualClock` is the fake."""

    def __call__(self) -> float: ...

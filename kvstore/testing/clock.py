"""A clock that moves when told to."""

from __future__ import annotations


class ManualClock:
    """The fake of `kvstore.core.ports.Clock`: monotonic seconds that a test advances by hand."""

    def __init__(self, now_s: float = 0.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        assert seconds >= 0, "a monotonic clock does not go back"
        self.now_s += seconds

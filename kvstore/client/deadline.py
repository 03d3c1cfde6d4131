"""One deadline for a verb that takes several steps."""

from __future__ import annotations

import time

from kvstore.core.errors import DeadlineExceededError


class Deadline:
    def __init__(self, deadline_s: float) -> None:
        self._budget_s = deadline_s
        self._end_s = time.monotonic() + deadline_s

    @property
    def left_s(self) -> float:
        """0 when nothing is left."""
        return max(self._end_s - time.monotonic(), 0.0)

    def part(self, share: float) -> Deadline:
        """One for a step: it ends after that share of what is left."""
        return Deadline(self.left_s * share)

    def remaining_s(self) -> float:
        """Raises DeadlineExceededError when nothing is left."""
        if (left_s := self.left_s) <= 0:
            raise DeadlineExceededError(f"nothing is left of the deadline of {self._budget_s:g} s")
        return left_s

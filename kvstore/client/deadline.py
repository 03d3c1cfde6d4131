"""One deadline for a verb that takes several steps."""

from __future__ import annotations

import time

from kvstore.core.errors import DeadlineExceededError


class Deadline:
    def __init__(self, deadline_s: float) -> None:
        self._budget_s = deadline_s
        self._end_s = time.monotonic() + deadline_s

    def remaining_s(self) -> float:
        """Raises DeadlineExceededError when nothing is left."""
        remaining_s = self._end_s - time.monotonic()
        if remaining_s <= 0:
            raise DeadlineExceededError(f"nothing is left of the deadline of {self._budget_s:g} s")
        return remaining_s

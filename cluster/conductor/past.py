"""What a worker had to do, added up over time: differences between two moments give means."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(slots=True)
class Past:
    """Of one worker, from when it joined up to `at_s`."""

    at_s: float = 0.0
    sequences: int = 0
    """Placed on it to decode."""
    tokens: float = 0.0
    """That those are expected to hold."""
    sequences_dt: float = 0.0
    """Integral of `sequences` over time."""
    tokens_dt: float = 0.0
    work_s: float = 0.0
    """Prefill given to it."""

    def advance(self, now_s: float) -> None:
        passed_s = now_s - self.at_s
        self.sequences_dt += passed_s * self.sequences
        self.tokens_dt += passed_s * self.tokens
        self.at_s = now_s

    def count(self, sequences: int, tokens: float) -> None:
        """From now on so many more."""
        self.sequences += sequences
        self.tokens += tokens

    def at(self, now_s: float) -> Past:
        """A copy, as of now."""
        self.advance(now_s)
        return replace(self)

"""Chains of blocks that live and die together, and what was seen of how they are used.

request 1   [ system prompt | question 1 ]
request 2   [ system prompt | question 1 | answer 1, question 2 ]     goes on with request 1
request 3   [ system prompt | question 3 ]                            shares a head with both

runs        [ system prompt ]    a head: reused by whoever comes
               └─ [ question 1 | answer 1, question 2 ]   a conversation: reused by its next
               turn └─ [ question 3 ]
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

_TURNS = (1, 2, 3, 4, 6)
_NEW_BLOCKS = (2, 3, 5, 12, 30)
_GAPS_S = (0, 30, 60, 120, 300)
_LENGTHS = (3, 8, 32, 64)


@dataclass(slots=True)
class Silence:
    """A time in which nobody read a run, and what was known of the run when it began."""

    started_s: float
    levels: tuple[int, ...]
    ended_s: float | None = None


class Run(Generic[K]):
    """Consecutive blocks of one chain. Every resident block belongs to one run."""

    __slots__ = ("above", "gap_s", "keys", "last", "length", "live_below", "new", "silence", "turn")

    def __init__(self, above: Run[K] | None) -> None:
        self.above = above
        """The run that this one continues; it is never evicted before this one."""
        self.live_below = 0
        """Runs with resident blocks that continue this one."""
        self.keys: list[K] = []
        self.last: K | None = None
        """Last block of the chain of the last access, resident or not."""
        self.turn = 0
        """How often it was read again."""
        self.new = 0
        """Blocks that the last access added."""
        self.length = 0
        """Blocks of the last access, from the start of its chain."""
        self.gap_s = -1.0
        """Length of the last silence."""
        self.silence: Silence | None = None
        """The present one; None for what a conversation left behind when it went on."""

    def levels(self, *, head: bool) -> tuple[int, ...]:
        """Levels of the features of the hazard model."""
        return (
            bisect_right(_TURNS, self.turn),
            bisect_right(_NEW_BLOCKS, self.new),
            bisect_right(_GAPS_S, self.gap_s),
            bisect_right(_LENGTHS, self.length),
            int(head),
        )

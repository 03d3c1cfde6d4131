"""Where a subscriber stands in one publisher's events, and what to do with the next message. Pure.

live:    1 2 3 . 5 6 5 7        . lost      → after 3, `5` says: ask for 4 and later
replay:        4 5 6 |          | last      → applied; the live 6 and 5 are then old, 7 is next
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto


class Step(Enum):
    IGNORE = auto()
    APPLY = auto()
    RESET_AND_APPLY = auto()
    """Forget all that this publisher held, then apply."""
    REPLAY = auto()
    """Ask for what is missing; see `Cursor.replay_point`."""
    RESET_AND_REPLAY = auto()
    """The publisher started anew: forget all that it held, then ask."""


@dataclass(frozen=True, slots=True)
class ReplayPoint:
    """What to ask for. Epoch 0 and sequence 0: everything, for nothing is known."""

    epoch: int
    from_sequence: int


class Cursor:
    """Decides; the caller applies events and asks for replays.

    Messages may be lost, repeated and reordered. The rules that make the result right: batches are
    applied in sequence without a hole; the larger epoch wins; what a new epoch holds is learned
    from a snapshot, for a publisher may start with blocks (a warm disk tier) that no batch tells.
    """

    def __init__(self, epoch: int = 0, sequence: int | None = None) -> None:
        """Nothing older than `epoch` will be believed; what it told up to `sequence` is applied
        already."""
        self._epoch = epoch
        self._sequence = sequence
        self._snapshot_begun = False

    @property
    def epoch(self) -> int:
        return self._epoch

    @property
    def sequence(self) -> int | None:
        """Of the last batch applied; None while nothing complete is known."""
        return self._sequence

    @property
    def synced(self) -> bool:
        return self._sequence is not None

    def live(self, epoch: int, sequence: int, *, empty: bool) -> Step:
        """A batch from the PUB socket; an empty one is a heartbeat that repeats the last number."""
        if epoch < self._epoch:
            return Step.IGNORE
        if epoch > self._epoch:
            self._epoch = epoch
            self._sequence = None
            return Step.RESET_AND_REPLAY
        if self._sequence is None:
            return Step.REPLAY
        if sequence <= self._sequence:
            return Step.IGNORE
        if empty or sequence > self._sequence + 1:
            return Step.REPLAY
        self._sequence = sequence
        return Step.APPLY

    def replay_point(self) -> ReplayPoint:
        """Begin to ask. Whatever an earlier answer left unfinished does not count."""
        self._snapshot_begun = False
        if self._sequence is None:
            return ReplayPoint(0, 0)
        return ReplayPoint(self._epoch, self._sequence + 1)

    def replayed(
        self, epoch: int, sequence: int, *, snapshot: bool, empty: bool, last: bool
    ) -> Step:
        """A frame of the answer, which arrives in order or not at all."""
        if epoch < self._epoch:
            return Step.IGNORE
        if snapshot:
            return self._snapshot(epoch, sequence, last)
        if epoch > self._epoch or self._sequence is None:
            return Step.IGNORE
        if empty or sequence != self._sequence + 1:
            return Step.IGNORE
        self._sequence = sequence
        return Step.APPLY

    def _snapshot(self, epoch: int, sequence: int, last: bool) -> Step:
        first = not self._snapshot_begun
        self._snapshot_begun = not last
        self._epoch = epoch
        self._sequence = sequence if last else None
        return Step.RESET_AND_APPLY if first else Step.APPLY

    def lose(self) -> None:
        """What was applied cannot be trusted: the next replay is a snapshot."""
        self._sequence = None

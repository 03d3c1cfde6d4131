"""Events on their way from the thread that records them to the loop that sends them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from threading import Lock

from kvstore.wire.v1.event_pb2 import BlockEvent


@dataclass(frozen=True, slots=True)
class Taken:
    events: list[BlockEvent]
    overflowed: bool
    """Some events were given up: subscribers must be told that there is a hole."""


class Outbox:
    """Ordered and bounded; any thread adds, one takes.

    At the bound everything waiting is given up rather than memory or the recording thread: a hole
    in the sequence makes subscribers ask for a snapshot, which is right again.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = Lock()
        self._events: list[BlockEvent] = []
        self._bytes = 0
        self._overflowed = False
        self._announced = False

    def add(self, events: Iterable[BlockEvent]) -> bool:
        """Returns whether the taker has to be woken: it was not since it took the last time."""
        added = list(events)
        added_bytes = sum(event.ByteSize() for event in added)
        with self._lock:
            self._events += added
            self._bytes += added_bytes
            if self._bytes > self._max_bytes:
                self._events, self._bytes, self._overflowed = [], 0, True
            announce, self._announced = not self._announced, True
            return announce

    def take(self) -> Taken:
        with self._lock:
            taken = Taken(self._events, self._overflowed)
            self._events, self._bytes = [], 0
            self._overflowed = self._announced = False
            return taken

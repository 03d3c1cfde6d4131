"""The latest batches of a publisher, for subscribers that missed some."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import islice


class ReplayBuffer:
    """Consecutive serialised batches, bounded in number and bytes: the oldest leave first.

    Pure state, owned by the publisher's loop.
    """

    def __init__(self, max_batches: int, max_bytes: int) -> None:
        assert max_batches >= 1
        assert max_bytes >= 1
        self._max_batches = max_batches
        self._max_bytes = max_bytes
        self._batches: deque[bytes] = deque()
        self._bytes = 0
        self._last = 0

    def append(self, sequence: int, batch: bytes) -> None:
        assert sequence > self._last
        if sequence != self._last + 1:
            self._batches.clear()
            self._bytes = 0
        self._last = sequence
        self._batches.append(batch)
        self._bytes += len(batch)
        while len(self._batches) > self._max_batches or self._bytes > self._max_bytes:
            self._bytes -= len(self._batches.popleft())

    def since(self, sequence: int) -> Sequence[bytes] | None:
        """Batches `sequence` and later; None if one of them is not held any more."""
        skipped = sequence - (self._last - len(self._batches) + 1)
        if skipped < 0 or sequence > self._last + 1:
            return None
        return list(islice(self._batches, skipped, None))

    def __len__(self) -> int:
        return len(self._batches)

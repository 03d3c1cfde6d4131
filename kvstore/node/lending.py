"""Bytes that go over the network: leased blocks, held until they are sent."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from kvstore.core.errors import InvalidArgumentError, LeaseExpiredError
from kvstore.transports.base import Loan


class Lending:
    """The references of one lease, shared by the node's event loop, which ends it, with threads
    that send its blocks. The references are given back by whoever is last."""

    def __init__(
        self,
        count: int,
        view: Callable[[int], memoryview],
        is_live: Callable[[], bool],
        release: Callable[[], None],
    ) -> None:
        """`view` shows the bytes of the n-th of `count` blocks; `release` gives the references
        back, on any thread."""
        self._count = count
        self._view = view
        self._is_live = is_live
        self._release = release
        self._lock = threading.Lock()
        self._num_lent = 0
        self._ended = False

    def lend(self, indices: Sequence[int]) -> Loan:
        """Raises LeaseExpiredError, InvalidArgumentError."""
        for index in indices:
            if not 0 <= index < self._count:
                raise InvalidArgumentError(
                    f"indices: {index} is none of the {self._count} blocks found by the lease"
                )
        with self._lock:
            if self._ended or not self._is_live():
                raise LeaseExpiredError("the lease ended before this call; acquire again")
            views = [self._view(index) for index in indices]
            self._num_lent += 1
        return Loan(views, self._give_back)

    def end(self) -> None:
        """Once: nothing is lent any more."""
        with self._lock:
            self._ended = True
            last = self._num_lent == 0
        if last:
            self._release()

    def _give_back(self) -> None:
        with self._lock:
            self._num_lent -= 1
            last = self._ended and self._num_lent == 0
        if last:
            self._release()

"""When the store misbehaves: whether to ask it at all, and what to say of it."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Mapping

from kvstore.core.errors import DeadlineExceededError, KVStoreError, UnavailableError
from kvstore.core.ports import Clock

_LOG = logging.getLogger(__name__)

_ABSENT = (DeadlineExceededError, UnavailableError)
"""What a node that is not there looks like."""

_MAX_DOUBLINGS = 4


class StoreGuard:
    """Remembers failures. Thread-safe.

    After a sign that the node is not there, it is not asked for blocks any more: a dead node must
    not cost every request a deadline. Only writers, for whom nobody waits, try it again, at
    intervals that double from `retry_s` on; their first success brings it back. Each kind of
    failure is logged once until then.
    """

    def __init__(self, clock: Clock, *, retry_s: float = 1.0) -> None:
        self._clock = clock
        self._retry_s = retry_s
        self._lock = threading.Lock()
        self._failures_in_row = 0
        self._retry_at_s = 0.0
        self._logged: set[str] = set()
        self._errors: Counter[str] = Counter()

    @property
    def may_read(self) -> bool:
        return not self._failures_in_row

    @property
    def may_write(self) -> bool:
        return not self._failures_in_row or self._clock() >= self._retry_at_s

    @property
    def errors(self) -> Mapping[str, int]:
        """How often each class of error occurred."""
        with self._lock:
            return dict(self._errors)

    def succeeded(self) -> None:
        with self._lock:
            self._failures_in_row = 0
            self._logged.clear()

    def failed(self, verb: str, error: Exception) -> None:
        kind = type(error).__name__
        with self._lock:
            self._errors[kind] += 1
            first = kind not in self._logged
            self._logged.add(kind)
            if isinstance(error, _ABSENT):
                delay_s = self._retry_s * 2 ** min(self._failures_in_row, _MAX_DOUBLINGS)
                self._retry_at_s = self._clock() + delay_s
                self._failures_in_row += 1
        if first:
            defect = None if isinstance(error, KVStoreError) else error
            _LOG.warning(
                "%s failed, going on without the store: %s: %s", verb, kind, error, exc_info=defect
            )

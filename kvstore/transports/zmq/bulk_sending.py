"""Pieces that a node handed to ZeroMQ and that are not known to be sent yet."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

import zmq

from kvstore.transports.base import Loan


@dataclass(frozen=True, slots=True)
class _Unsent:
    loan: Loan
    last: zmq.MessageTracker | None
    length_bytes: int


class Unsent:
    """Loans that ZeroMQ still reads from, and their bytes. Used by one thread.

    ZeroMQ takes the bytes straight from the lent memory, so a loan goes back only when all its
    messages were sent, or dropped with their connection. Frames to one peer are sent in order: the
    last lent one of a loan tells of all.
    """

    def __init__(self) -> None:
        self._loans: deque[_Unsent] = deque()
        self.length_bytes = 0

    def add(self, loan: Loan, last: zmq.MessageTracker | None, length_bytes: int) -> None:
        """`last` is that of the last frame that ZeroMQ reads from the loan; None if it reads none,
        having copied them all."""
        self._loans.append(_Unsent(loan, last, length_bytes))
        self.length_bytes += length_bytes

    def give_back_sent(self) -> None:
        """Also those behind one that hangs: peers differ in speed."""
        for _ in range(len(self._loans)):
            unsent = self._loans.popleft()
            if unsent.last is None or unsent.last.done:
                self.length_bytes -= unsent.length_bytes
                unsent.loan.give_back()
            else:
                self._loans.append(unsent)

    def wait_sent(self, wait_s: float) -> None:
        """Until all are given back, for a bounded time."""
        end_s = time.monotonic() + wait_s
        while self._loans and time.monotonic() < end_s:
            self.give_back_sent()
            time.sleep(0.001)

    def __len__(self) -> int:
        return len(self._loans)

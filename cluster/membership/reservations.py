"""Requests that are counted in for a lifetime."""

from __future__ import annotations

from heapq import heappop, heappush

from kvstore.core.errors import ResourceExhaustedError
from kvstore.core.ids import RequestId, ReservationId

LIFETIME_S = 60.0
LIFETIME_MAX_S = 900.0
"""The conductor gives requests up after that time anyway."""


class Reservations:
    """Pure; the owner tells the time and draws the ids. A request has one reservation at most: a
    new one of it ends the one before."""

    def __init__(self, reservations_max: int = 65_536) -> None:
        self._reservations_max = reservations_max
        self._requests: dict[ReservationId, RequestId] = {}
        self._of: dict[RequestId, ReservationId] = {}
        self._ends: list[tuple[float, ReservationId]] = []

    def __len__(self) -> int:
        return len(self._requests)

    def check_room(self) -> None:
        """Raises ResourceExhaustedError if there is none for one more."""
        if len(self._requests) >= self._reservations_max:
            raise ResourceExhaustedError(
                f"{self._reservations_max} requests are reserved; release those that are over, or"
                " reserve for a shorter time"
            )

    def add(self, reservation_id: ReservationId, request_id: RequestId, ends_s: float) -> None:
        self.end_of(request_id)
        self._requests[reservation_id] = request_id
        self._of[request_id] = reservation_id
        heappush(self._ends, (ends_s, reservation_id))

    def end(self, reservation_id: ReservationId) -> RequestId | None:
        """Whose it was; None if it is over already."""
        request_id = self._requests.pop(reservation_id, None)
        if request_id is not None:
            del self._of[request_id]
        return request_id

    def end_of(self, request_id: RequestId) -> None:
        """The request is placed by other means. No error if it has no reservation."""
        reservation_id = self._of.get(request_id)
        if reservation_id is not None:
            self.end(reservation_id)

    def expire(self, now_s: float) -> list[RequestId]:
        """End those whose lifetime is over; returns whose they were."""
        over = []
        while self._ends and self._ends[0][0] <= now_s:
            request_id = self.end(heappop(self._ends)[1])
            if request_id is not None:
                over.append(request_id)
        return over

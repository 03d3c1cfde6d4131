"""The node's side of the bulk transports: which bytes may be sent, and which may land."""

from __future__ import annotations

from collections.abc import Sequence

from kvstore.core.errors import LeaseExpiredError, ReservationExpiredError
from kvstore.core.ids import LeaseId, ReservationId, SessionId
from kvstore.node.landing import Landing
from kvstore.node.lending import Lending
from kvstore.transports.base import Loan


class BulkAccess:
    """Live leases and reservations by their ids; implements `kvstore.transports.base.BulkStore`.

    The node's event loop opens and closes them. `lend` and `land` are called by any thread and see
    each of them whole or not at all: one look into a dict.
    """

    def __init__(self) -> None:
        self.lendings: dict[tuple[SessionId, LeaseId], Lending] = {}
        self.landings: dict[tuple[SessionId, ReservationId], Landing] = {}

    def lend(self, session_id: int, lease_id: int, indices: Sequence[int]) -> Loan:
        lending = self.lendings.get((SessionId(session_id), LeaseId(lease_id)))
        if lending is None:
            raise LeaseExpiredError(f"lease {lease_id} ended before this call; acquire again")
        return lending.lend(indices)

    def land(
        self, session_id: int, reservation_id: int, index: int, start_byte: int, data: memoryview
    ) -> None:
        landing = self.landings.get((SessionId(session_id), ReservationId(reservation_id)))
        if landing is None:
            raise ReservationExpiredError(
                f"reservation {reservation_id} ended before this call; reserve again"
            )
        landing.write(index, start_byte, data)

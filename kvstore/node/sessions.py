"""Client sessions: who holds which reservations and leases, and until when."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

from kvstore.core.errors import ResourceExhaustedError, SessionExpiredError
from kvstore.core.ids import BlockKey, LayoutFingerprint, LeaseId, ReservationId, SessionId
from kvstore.core.ports import Clock
from kvstore.tiers.base import Resident, Slot
from kvstore.transports.process import ProcessIdentity

MAX_SESSIONS = 4_096
MAX_HELD = 8_192
"""Reservations, and leases, that one session may hold at a time."""


@dataclass
class Reservation:
    """Slots that one session is writing. `left` are the indices not yet committed."""

    id: ReservationId
    keys: Sequence[BlockKey]
    slots: Sequence[Slot]
    block_bytes: int
    expires_at: float
    left: set[int]

    def keys_left(self) -> list[BlockKey]:
        return [self.keys[index] for index in sorted(self.left)]


@dataclass(frozen=True)
class Lease:
    """References on resident blocks, for one session to read."""

    id: LeaseId
    keys: Sequence[BlockKey]
    residents: Sequence[Resident]
    expires_at: float


@dataclass
class Session:
    """One client process. `process` is None where it cannot write the arena in place."""

    id: SessionId
    client_name: str
    process: ProcessIdentity | None
    layouts: dict[LayoutFingerprint, int]
    """Bytes of a block, for each layout that the client said it would write."""
    expires_at: float
    reservations: dict[ReservationId, Reservation] = field(default_factory=dict)
    leases: dict[LeaseId, Lease] = field(default_factory=dict)
    """Both in the order in which they expire."""


class Sessions:
    """Table of live sessions. Bound: MAX_SESSIONS. Owned by the node's event loop."""

    def __init__(self, clock: Clock, ttl_s: float) -> None:
        self._clock = clock
        self._ttl_s = ttl_s
        self._sessions: dict[SessionId, Session] = {}

    def open(
        self,
        client_name: str,
        process: ProcessIdentity | None,
        layouts: dict[LayoutFingerprint, int],
    ) -> Session:
        if len(self._sessions) >= MAX_SESSIONS:
            raise ResourceExhaustedError(f"{MAX_SESSIONS} sessions are open; close some")
        session = Session(_new_id(), client_name, process, layouts, self._clock() + self._ttl_s)
        self._sessions[session.id] = session
        return session

    def use(self, session_id: SessionId) -> Session:
        """The session, kept alive by this call. Raises SessionExpiredError."""
        session = self._sessions.get(session_id)
        now = self._clock()
        if session is None or session.expires_at <= now:
            raise SessionExpiredError(f"session {session_id:#x} is not open here; open a new one")
        session.expires_at = now + self._ttl_s
        return session

    def find(self, session_id: SessionId) -> Session | None:
        """The session if it is still there, without keeping it alive."""
        return self._sessions.get(session_id)

    def is_open(self, session: Session) -> bool:
        return session.id in self._sessions

    def remove(self, session_id: SessionId) -> Session | None:
        return self._sessions.pop(session_id, None)

    def remove_ended(self) -> list[Session]:
        """Take out the sessions that were silent for too long, and those whose process died."""
        now = self._clock()
        ended = [s for s in self._sessions.values() if s.expires_at <= now or _died(s)]
        for session in ended:
            del self._sessions[session.id]
        return ended

    def all(self) -> list[Session]:
        return list(self._sessions.values())

    def __len__(self) -> int:
        return len(self._sessions)


def _died(session: Session) -> bool:
    return session.process is not None and not session.process.can_run()


def _new_id() -> SessionId:
    """Not guessable, and different from those of the node's earlier lives."""
    return SessionId(secrets.randbits(63) + 1)

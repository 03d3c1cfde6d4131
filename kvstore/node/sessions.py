"""Client sessions: who holds which reservations and leases, and until when."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kvstore.core.errors import (
    InvalidArgumentError,
    LayoutMismatchError,
    PermissionDeniedError,
    ResourceExhaustedError,
    SessionExpiredError,
)
from kvstore.core.ids import (
    BlockKey,
    BlockKeys,
    LayoutFingerprint,
    LeaseId,
    ReservationId,
    SessionId,
)
from kvstore.core.ports import Clock
from kvstore.node.retention import RetentionRange
from kvstore.node.tenants import DEFAULT_TENANT
from kvstore.tiers.base import AddressableTier, Resident, Slot
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
    retention: Mapping[BlockKey, RetentionRange] = field(default_factory=dict)
    """What was asked of its blocks; takes effect when they are committed."""

    def keys_left(self) -> list[BlockKey]:
        return [self.keys[index] for index in sorted(self.left)]

    def slots_left(self) -> list[Slot]:
        return [self.slots[index] for index in sorted(self.left)]


@dataclass(eq=False)
class Lease:
    """References on resident blocks, and on such as are being written, for one session to read."""

    id: LeaseId
    keys: Sequence[BlockKey]
    residents: list[Resident]
    expires_at: float
    pending: dict[int, Slot] = field(default_factory=dict)
    """By index: blocks that are not committed yet. What `residents` says of them does not count."""
    failed: dict[int, Slot] = field(default_factory=dict)
    """Blocks that were pending and never will be committed."""

    def keys_committed(self) -> Sequence[BlockKey]:
        if not self.pending and not self.failed:
            return self.keys
        unsettled = self.pending | self.failed
        return [key for index, key in enumerate(self.keys) if index not in unsettled]

    def give_back(self, host: AddressableTier) -> None:
        """Once, by the last user of the lease, on any thread."""
        host.release(self.keys_committed())
        if unsettled := self.pending | self.failed:
            host.release_slots(unsettled.values())

    def check_committed(self, index: int) -> None:
        if index in self.pending or index in self.failed:
            raise InvalidArgumentError(
                f"indices: block {index} of the lease was not committed when it was found; "
                "call Confirm, and leave out what it answers a miss for"
            )


@dataclass
class Session:
    """One client process. `process` is None where it cannot write the arena in place."""

    id: SessionId
    client_name: str
    process: ProcessIdentity | None
    tenant: str
    peer: bool
    """Another node, which reads the blocks of every tenant by their folded keys."""
    layouts: dict[LayoutFingerprint, int]
    """Bytes of a block, for each layout that the client said it would write (tenant folded
    in)."""
    expires_at: float
    reservations: dict[ReservationId, Reservation] = field(default_factory=dict)
    leases: dict[LeaseId, Lease] = field(default_factory=dict)
    """Both in the order in which they expire."""

    def check_layout(self, keys: BlockKeys, block_bytes: int) -> None:
        """Raises LayoutMismatchError for blocks that the session did not say it would write. One
        that named no layouts writes any."""
        if not self.layouts:
            return
        expected_bytes = self.layouts.get(keys.layout)
        if expected_bytes is None:
            raise LayoutMismatchError(
                "keys.layout_fingerprint is none of the layouts that the session was opened with; "
                "open it with every layout it writes"
            )
        if block_bytes != expected_bytes:
            raise LayoutMismatchError(
                f"block_bytes: a block of that layout has {expected_bytes} bytes, got "
                f"{block_bytes}; reserve blocks as their layout says"
            )


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
        *,
        tenant: str = DEFAULT_TENANT,
        peer: bool = False,
    ) -> Session:
        if len(self._sessions) >= MAX_SESSIONS:
            raise ResourceExhaustedError(f"{MAX_SESSIONS} sessions are open; close some")
        expires_at = self._clock() + self._ttl_s
        session = Session(_new_id(), client_name, process, tenant, peer, layouts, expires_at)
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

    def use_owner(self, session_id: SessionId) -> Session:
        """The same of one that may write, and decide about blocks."""
        session = self.use(session_id)
        if session.peer:
            raise PermissionDeniedError(
                "session_id: a peer reads blocks only; open a session of their tenant"
            )
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

"""reserve → commit | abort: the write half of a block's life."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

from kvstore.core.errors import (
    InvalidArgumentError,
    ReservationExpiredError,
    ResourceExhaustedError,
)
from kvstore.core.ids import BlockKey, ReservationId, SessionId
from kvstore.core.ports import Clock
from kvstore.node.replicas import Replicas
from kvstore.node.sessions import MAX_HELD, Reservation, Session
from kvstore.tiers.base import ReserveOutcome, TierKind
from kvstore.transports.process import ProcessIdentity

FIRST_NODE_ID = 1 << 63
"""Reservation ids from here on are chosen by the node; smaller ones by its clients."""


@dataclass(frozen=True, slots=True)
class CommittedBlock:
    index: int
    """Counts over the blocks of the reservation."""
    length_bytes: int
    checksum: int


@dataclass(frozen=True, slots=True)
class _Orphan:
    """Slots whose reservation ended while their writer may still write."""

    session_id: SessionId
    reservation_id: ReservationId
    process: ProcessIdentity
    keys: Sequence[BlockKey]


class Reservations:
    """Reservations of all sessions. Owned by the node's event loop.

    A reservation ends `ttl_s` after it was made or last committed to. KeepAlive does not renew it:
    a client whose writer hangs, while its keep-alive goes on, must not hide its keys from others
    for ever.

    When a reservation ends other than by commit, its blocks can never become visible. But its slots
    may not be reused yet: the writer maps them, and a slow or stopped one could wake up and
    scribble over the next block there. They are kept back as orphans until the writer cannot write
    any more: it said so (abort, or the end of its session), or its process is dead. Writers without
    a mapping write through `write`, which refuses them at once.
    """

    def __init__(
        self,
        replicas: Replicas,
        on_commit: Callable[[Sequence[BlockKey]], None],
        clock: Clock,
        ttl_s: float,
    ) -> None:
        self._replicas = replicas
        self._on_commit = on_commit
        self._clock = clock
        self._ttl_s = ttl_s
        self._ids = count(FIRST_NODE_ID)
        self._orphans: dict[tuple[SessionId, ReservationId], _Orphan] = {}

    def reserve(
        self, session: Session, keys: Sequence[BlockKey], block_bytes: int, id_: ReservationId
    ) -> tuple[Reservation, Sequence[ReserveOutcome]]:
        if len(session.reservations) >= MAX_HELD:
            raise ResourceExhaustedError(f"the session holds {MAX_HELD} reservations; commit some")
        if (
            id_ >= FIRST_NODE_ID
            or (session.id, id_) in self._orphans
            or id_ in session.reservations
        ):
            raise InvalidArgumentError(
                f"reservation_id {id_} must be below 2^63 and not in use by the session"
            )
        reserved = self._replicas.host.reserve(keys, block_bytes)
        self._replicas.evicted(TierKind.HOST, reserved.evicted)
        outcomes = zip(keys, reserved.outcomes, strict=True)
        reservation = Reservation(
            id=id_ or ReservationId(next(self._ids)),
            keys=[key for key, outcome in outcomes if outcome is ReserveOutcome.RESERVED],
            slots=reserved.slots,
            block_bytes=block_bytes,
            expires_at=self._clock() + self._ttl_s,
            left=set(range(len(reserved.slots))),
        )
        if reservation.left:
            session.reservations[reservation.id] = reservation
        return reservation, reserved.outcomes

    def commit(
        self, session: Session, reservation_id: ReservationId, blocks: Sequence[CommittedBlock]
    ) -> None:
        """All of `blocks` become visible, or none and an error is raised."""
        reservation = self._live(session, reservation_id)
        _check_committable(reservation, blocks)
        keys = [reservation.keys[block.index] for block in blocks]
        self._replicas.host.commit(
            keys, [block.length_bytes for block in blocks], [block.checksum for block in blocks]
        )
        reservation.left.difference_update(block.index for block in blocks)
        del session.reservations[reservation_id]
        if reservation.left:
            reservation.expires_at = self._clock() + self._ttl_s
            session.reservations[reservation_id] = reservation
        self._replicas.stored(TierKind.HOST, keys)
        self._on_commit(keys)

    def write(
        self,
        session: Session,
        reservation_id: ReservationId,
        index: int,
        start_byte: int,
        data: bytes,
    ) -> None:
        """Fill part of a reserved block, for clients that cannot map the arena."""
        reservation = self._live(session, reservation_id)
        if index not in reservation.left:
            raise InvalidArgumentError(f"index {index} is no uncommitted block of the reservation")
        if start_byte + len(data) > reservation.block_bytes:
            raise InvalidArgumentError(
                f"start_byte {start_byte} + {len(data)} bytes of data pass the end of the block "
                f"({reservation.block_bytes} bytes)"
            )
        view = self._replicas.host.view(reservation.slots[index])
        view[start_byte : start_byte + len(data)] = data

    def abort(self, session: Session | None, session_id: SessionId, id_: ReservationId) -> None:
        """The writer will not write any more. Idempotent; works after its session ended."""
        if session is not None and (reservation := session.reservations.pop(id_, None)):
            self._replicas.host.abort(reservation.keys_left())
        if orphan := self._orphans.pop((session_id, id_), None):
            self._replicas.host.abort(orphan.keys)

    def close(self, session: Session | None, session_id: SessionId) -> None:
        """The client said that none of its writers will write any more."""
        if session is not None:
            for reservation_id in list(session.reservations):
                self.abort(session, session_id, reservation_id)
        for key in [key for key in self._orphans if key[0] == session_id]:
            self.abort(None, *key)

    def expire(self, session: Session, *, all_: bool = False) -> None:
        """End the reservations whose time is up, or all of them with their session."""
        now = self._clock()
        for reservation in list(session.reservations.values()):
            if not all_ and reservation.expires_at > now:
                break
            del session.reservations[reservation.id]
            self._end(session, reservation)

    def free_orphans(self) -> None:
        """Give back the slots of writers that died."""
        for orphan in list(self._orphans.values()):
            if not orphan.process.can_run():
                self.abort(None, orphan.session_id, orphan.reservation_id)

    @property
    def num_orphaned_blocks(self) -> int:
        return sum(len(orphan.keys) for orphan in self._orphans.values())

    def _end(self, session: Session, reservation: Reservation) -> None:
        keys = reservation.keys_left()
        if session.process is not None and session.process.can_run():
            orphan = _Orphan(session.id, reservation.id, session.process, keys)
            self._orphans[session.id, reservation.id] = orphan
        else:
            self._replicas.host.abort(keys)

    def _live(self, session: Session, reservation_id: ReservationId) -> Reservation:
        reservation = session.reservations.get(reservation_id)
        if reservation is None or reservation.expires_at <= self._clock():
            raise ReservationExpiredError(
                f"reservation {reservation_id} ended before this call; reserve again"
            )
        return reservation


def _check_committable(reservation: Reservation, blocks: Sequence[CommittedBlock]) -> None:
    indices = {block.index for block in blocks}
    if len(indices) != len(blocks):
        raise InvalidArgumentError("indices must not repeat")
    if unknown := indices - reservation.left:
        raise InvalidArgumentError(
            f"indices: {min(unknown)} is no uncommitted block of the reservation"
        )
    for block in blocks:
        if not 1 <= block.length_bytes <= reservation.block_bytes:
            raise InvalidArgumentError(
                f"lengths_bytes must lie in [1, {reservation.block_bytes}], as reserved; "
                f"got {block.length_bytes}"
            )

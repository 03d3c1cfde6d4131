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
from kvstore.node.bulk import BulkAccess
from kvstore.node.landing import Landing
from kvstore.node.replicas import Replicas
from kvstore.node.retention import RetentionRange, keys_by_range, ranges_by_key
from kvstore.node.sessions import MAX_HELD, Reservation, Session
from kvstore.node.streaming import Streams
from kvstore.tiers.base import ReserveOutcome, Slot, TierKind
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
    slots: Sequence[Slot]


class Reservations:
    """Reservations of all sessions. Owned by the node's event loop.

    A reservation ends `ttl_s` after it was made or last committed to. KeepAlive does not renew it:
    a client whose writer hangs, while its keep-alive goes on, must not hide its keys from others
    for ever.

    When a reservation ends other than by commit, its blocks can never become visible, and their
    keys are free for other writers. But its slots may not be reused yet: the writer maps them, and
    a slow or stopped one could wake up and scribble over the next block there. They are kept back
    as orphans until the writer cannot write any more: it said so (abort, or the end of its
    session), or its process is dead. Writers without a mapping write through a `Landing`, which
    refuses them at once.
    """

    def __init__(
        self,
        replicas: Replicas,
        on_commit: Callable[[Sequence[BlockKey]], None],
        bulk: BulkAccess,
        streams: Streams,
        clock: Clock,
        ttl_s: float,
    ) -> None:
        self._replicas = replicas
        self._streams = streams
        self._bulk = bulk
        self._on_commit = on_commit
        self._clock = clock
        self._ttl_s = ttl_s
        self._ids = count(FIRST_NODE_ID)
        self._orphans: dict[tuple[SessionId, ReservationId], _Orphan] = {}

    def reserve(
        self,
        session: Session,
        keys: Sequence[BlockKey],
        block_bytes: int,
        id_: ReservationId,
        retention: Sequence[RetentionRange] = (),
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
        reserved = self._replicas.reserve(keys, block_bytes)
        outcomes = zip(keys, reserved.outcomes, strict=True)
        reservation = Reservation(
            id=id_ or ReservationId(next(self._ids)),
            keys=[key for key, outcome in outcomes if outcome is ReserveOutcome.RESERVED],
            slots=reserved.slots,
            block_bytes=block_bytes,
            expires_at=self._clock() + self._ttl_s,
            left=set(range(len(reserved.slots))),
            retention=ranges_by_key(keys, retention),
        )
        if reservation.left:
            session.reservations[reservation.id] = reservation
            self._bulk.landings[session.id, reservation.id] = Landing(
                reservation.slots, block_bytes, self._replicas.host.view
            )
        return reservation, reserved.outcomes

    def commit(
        self, session: Session, reservation_id: ReservationId, blocks: Sequence[CommittedBlock]
    ) -> None:
        """All of `blocks` become visible, or none and an error is raised."""
        reservation = self._live(session, reservation_id)
        _check_committable(reservation, blocks)
        self._land(session, reservation, blocks)
        keys = [reservation.keys[block.index] for block in blocks]
        self._replicas.host.commit(
            keys, [block.length_bytes for block in blocks], [block.checksum for block in blocks]
        )
        for part, group in keys_by_range(keys, reservation.retention).items():
            self._replicas.host.retain(group, part.priority, part.duration_s)
        self._streams.settle((reservation.slots[b.index] for b in blocks), committed=True)
        reservation.left.difference_update(block.index for block in blocks)
        del session.reservations[reservation_id]
        if reservation.left:
            reservation.expires_at = self._clock() + self._ttl_s
            session.reservations[reservation_id] = reservation
        else:
            self._close_landing(session.id, reservation_id)
        self._replicas.stored(TierKind.HOST, keys)
        self._on_commit(keys)

    def abort(self, session: Session | None, session_id: SessionId, id_: ReservationId) -> None:
        """The writer will not write any more. Idempotent; works after its session ended."""
        if session is not None and (reservation := session.reservations.pop(id_, None)):
            self._close_landing(session_id, id_)
            self._replicas.host.abort(reservation.keys_left())
            self._streams.settle(reservation.slots_left(), committed=False)
        if orphan := self._orphans.pop((session_id, id_), None):
            self._replicas.host.release_slots(orphan.slots)

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
            self._close_landing(session.id, reservation.id)
            self._end(session, reservation)

    def free_orphans(self) -> None:
        """Give back the slots of writers that died."""
        for orphan in list(self._orphans.values()):
            if not orphan.process.can_run():
                self.abort(None, orphan.session_id, orphan.reservation_id)

    @property
    def num_orphaned_blocks(self) -> int:
        return sum(len(orphan.slots) for orphan in self._orphans.values())

    def _end(self, session: Session, reservation: Reservation) -> None:
        keys = reservation.keys_left()
        if session.process is not None and session.process.can_run():
            slots = self._replicas.host.set_aside(keys)
            orphan = _Orphan(session.id, reservation.id, session.process, slots)
            self._orphans[session.id, reservation.id] = orphan
        else:
            self._replicas.host.abort(keys)
        self._streams.settle(reservation.slots_left(), committed=False)

    def _land(
        self, session: Session, reservation: Reservation, blocks: Sequence[CommittedBlock]
    ) -> None:
        """Raises ChecksumError for bytes that did not arrive as they are committed."""
        self._bulk.landings[session.id, reservation.id].commit(
            [block.index for block in blocks],
            [block.length_bytes for block in blocks],
            [block.checksum for block in blocks],
            mapped=session.process is not None,
        )

    def _close_landing(self, session_id: SessionId, reservation_id: ReservationId) -> None:
        self._bulk.landings.pop((session_id, reservation_id)).close()

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

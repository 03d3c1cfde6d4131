"""acquire → release: the read half of a block's life."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import count

from kvstore.core.checksum import checksum
from kvstore.core.errors import (
    InvalidArgumentError,
    LeaseExpiredError,
    ResourceExhaustedError,
    SessionExpiredError,
)
from kvstore.core.ids import BlockKey, LeaseId
from kvstore.core.ports import Clock
from kvstore.node.bulk import BulkAccess
from kvstore.node.incoming import Incoming
from kvstore.node.lending import Lending
from kvstore.node.replicas import Replicas
from kvstore.node.sessions import MAX_HELD, Lease, Session, Sessions
from kvstore.node.streaming import Streams
from kvstore.tiers.base import MissReason, Resident, Slot, TierKind


@dataclass(frozen=True, slots=True)
class Acquired:
    """`tiers[i]` says where the i-th key was found, or why it was not."""

    lease: Lease
    tiers: Sequence[TierKind | MissReason]


@dataclass(frozen=True, slots=True)
class ConfirmedLease:
    lease: Lease
    misses: Mapping[int, MissReason]
    """By index over the blocks found: those that must be treated as missed, and why."""


class Leases:
    """Leases of all sessions. Owned by the node's event loop.

    A lease ends `ttl_s` after it was given, whatever its session does: a reader that hangs must not
    hold host memory for ever. The generations of its blocks tell a late reader.
    """

    def __init__(
        self,
        replicas: Replicas,
        sessions: Sessions,
        incoming: Incoming,
        on_read: Callable[[Sequence[BlockKey]], None],
        bulk: BulkAccess,
        streams: Streams,
        executor: Executor,
        clock: Clock,
        ttl_s: float,
    ) -> None:
        self._replicas = replicas
        self._sessions = sessions
        self._bulk = bulk
        self._streams = streams
        self._incoming = incoming
        self._on_read = on_read
        self._executor = executor
        self._clock = clock
        self._ttl_s = ttl_s
        self._ids = count(1)
        self.hits: Counter[TierKind] = Counter()
        self.misses: Counter[MissReason] = Counter()
        self.num_corrupt = 0

    async def acquire(
        self,
        session: Session,
        keys: Sequence[BlockKey],
        wait_s: float,
        *,
        local: bool = False,
        streaming: bool = False,
    ) -> Acquired:
        """References on the blocks that are here or come up within `wait_s`, from disk or, unless
        `local`, from other nodes; with `streaming` also on those that are being written, if the
        session's process maps the arena."""
        _check_held(session)
        residents = self._replicas.host.acquire(keys)
        try:
            tiers = await self._bring_up(keys, residents, wait_s, local=local)
            if not self._sessions.is_open(session):
                raise SessionExpiredError("the session ended during the call; open a new one")
        except BaseException:  # also a cancelled call must not keep its references
            self._replicas.host.release(_found(keys, residents))
            raise
        self.hits.update(tier for tier in tiers if isinstance(tier, TierKind))
        pending = {}
        if streaming and session.process is not None:
            pending = self._streams.acquire(keys, tiers)
            for i in pending:
                tiers[i] = TierKind.HOST
        self.misses.update(miss for miss in tiers if isinstance(miss, MissReason))
        lease = self._lease(keys, residents, pending)
        self._give(session, lease)
        self._on_read(lease.keys_committed())
        return Acquired(lease, tiers)

    def acquire_now(self, session: Session, keys: Sequence[BlockKey]) -> Acquired | None:
        """`acquire` of blocks that are all in host memory; None, and nothing done, if one is not.

        Eviction is told of the use once the answer is on its way, before the next call is heard."""
        _check_held(session)
        host = self._replicas.host
        if not all(host.present(keys)):
            return None
        residents = host.hold(keys)
        here = [resident for resident in residents if resident is not None]
        if len(here) < len(keys):  # another thread dropped one meanwhile
            host.release(_found(keys, residents))
            return None
        self.hits[TierKind.HOST] += len(here)
        lease = Lease(LeaseId(next(self._ids)), keys, here, self._clock() + self._ttl_s)
        self._give(session, lease)
        asyncio.get_running_loop().call_soon(self._used, keys)
        return Acquired(lease, [TierKind.HOST] * len(here))

    def _used(self, keys: Sequence[BlockKey]) -> None:
        self._replicas.host.touch(keys)
        self._on_read(keys)

    def _give(self, session: Session, lease: Lease) -> None:
        if lease.keys:
            session.leases[lease.id] = lease
            self._bulk.lendings[session.id, lease.id] = self._lending(lease)

    async def confirm(self, session: Session, lease_id: LeaseId, wait_s: float) -> ConfirmedLease:
        """Wait until the blocks of a lease that were found while they were written are committed,
        or one of them failed.

        Raises LeaseExpiredError, also if the lease ends meanwhile: then nothing of it counts.
        """
        lease = self._live(session, lease_id)
        self._note(lease)
        if lease.pending and not lease.failed and wait_s > 0:
            await self._streams.wait(lease, wait_s)
            lease = self._live(session, lease_id)
            self._note(lease)
        misses = dict.fromkeys(lease.pending, MissReason.PENDING)
        misses |= dict.fromkeys(lease.failed, MissReason.FAILED)
        return ConfirmedLease(lease, misses)

    def _note(self, lease: Lease) -> None:
        """A block found while it was written is a hit or a miss once its end is known."""
        num_pending, num_failed = len(lease.pending), len(lease.failed)
        self._streams.note(lease)
        num_failed = len(lease.failed) - num_failed
        self.misses[MissReason.FAILED] += num_failed
        self.hits[TierKind.HOST] += num_pending - len(lease.pending) - num_failed

    def _lease(
        self,
        keys: Sequence[BlockKey],
        residents: Sequence[Resident | None],
        pending: Mapping[int, Slot],
    ) -> Lease:
        found = [i for i, resident in enumerate(residents) if resident or i in pending]
        return Lease(
            id=LeaseId(next(self._ids)),
            keys=[keys[i] for i in found],
            residents=[residents[i] or Resident(pending[i], checksum=0) for i in found],
            expires_at=self._clock() + self._ttl_s,
            pending={place: pending[i] for place, i in enumerate(found) if i in pending},
        )

    def release(self, session: Session, lease_ids: Iterable[LeaseId]) -> None:
        """Idempotent: a lease that ended by itself is no error."""
        for lease_id in lease_ids:
            if session.leases.pop(lease_id, None):
                self._bulk.lendings.pop((session.id, lease_id)).end()

    def expire(self, session: Session, *, all_: bool = False) -> None:
        now = self._clock()
        for lease in list(session.leases.values()):
            if not all_ and lease.expires_at > now:
                break
            self.release(session, [lease.id])

    def num_found(self, session: Session, lease_id: LeaseId) -> int:
        return len(self._live(session, lease_id).keys)

    async def report(self, session: Session, lease_id: LeaseId, indices: Sequence[int]) -> int:
        """A reader found wrong bytes. See for ourselves, drop what is bad; returns how many.

        A copy on disk is verified when it is next brought up.
        """
        blocks = dict(self._block(session, lease_id, index) for index in indices)
        residents = self._replicas.host.hold(list(blocks))
        # Those that were dropped already are held by the lease alone.
        keys = [key for key, r in zip(blocks, residents, strict=True) if r is not None]
        try:
            loop = asyncio.get_running_loop()
            bad = await loop.run_in_executor(self._executor, self._bad_blocks, blocks)
        finally:
            self._replicas.host.release(keys)
        self.num_corrupt += len(bad)
        self._replicas.corrupt(TierKind.HOST, self._replicas.host.drop(bad))
        return len(bad)

    def _bad_blocks(self, blocks: dict[BlockKey, Resident]) -> list[BlockKey]:
        view = self._replicas.host.view
        return [
            key
            for key, resident in blocks.items()
            if checksum(view(resident.slot)[: resident.slot.length_bytes]) != resident.checksum
        ]

    async def _bring_up(
        self,
        keys: Sequence[BlockKey],
        residents: list[Resident | None],
        wait_s: float,
        *,
        local: bool,
    ) -> list[TierKind | MissReason]:
        """Fill the holes in `residents`. Returns the tier of, or reason for, each key."""
        tiers: list[TierKind | MissReason] = [TierKind.HOST] * len(keys)
        holes = [i for i, resident in enumerate(residents) if resident is None]
        if not holes:
            return tiers
        wanted = [keys[i] for i in holes]
        async with self._incoming.brought(wanted, wait_s, local=local) as ends:
            misses = {i: end for i in holes if isinstance(end := ends.get(keys[i]), MissReason)}
            rest = [i for i in holes if i not in misses]
            acquired = self._replicas.host.acquire([keys[i] for i in rest])
            for i, resident in zip(rest, acquired, strict=True):
                residents[i] = resident
                tiers[i] = self._after_wait(keys[i], resident, ends.get(keys[i]))
            for i, miss in misses.items():
                tiers[i] = miss
        return tiers

    def _after_wait(
        self, key: BlockKey, resident: Resident | None, came_from: TierKind | MissReason | None
    ) -> TierKind | MissReason:
        """What came may be gone again, reported as bad; and what no source had may have been
        written meanwhile."""
        if resident is None:
            return self._replicas.why_absent(key)
        return came_from or TierKind.HOST

    def _lending(self, lease: Lease) -> Lending:
        host, residents = self._replicas.host, lease.residents

        def view(index: int) -> memoryview:
            lease.check_committed(index)
            return host.view(residents[index].slot)

        return Lending(
            len(residents),
            view,
            lambda: lease.expires_at > self._clock(),
            lambda: lease.give_back(host),
        )

    def _block(self, session: Session, lease_id: LeaseId, index: int) -> tuple[BlockKey, Resident]:
        lease = self._live(session, lease_id)
        if not 0 <= index < len(lease.keys):
            raise InvalidArgumentError(
                f"indices: {index} is none of the {len(lease.keys)} blocks found by the lease"
            )
        lease.check_committed(index)
        return lease.keys[index], lease.residents[index]

    def _live(self, session: Session, lease_id: LeaseId) -> Lease:
        lease = session.leases.get(lease_id)
        if lease is None or lease.expires_at <= self._clock():
            raise LeaseExpiredError(f"lease {lease_id} ended before this call; acquire again")
        return lease


def _check_held(session: Session) -> None:
    if len(session.leases) >= MAX_HELD:
        raise ResourceExhaustedError(f"the session holds {MAX_HELD} leases; release some")


def _found(keys: Sequence[BlockKey], residents: Sequence[Resident | None]) -> list[BlockKey]:
    return [key for key, resident in zip(keys, residents, strict=True) if resident is not None]

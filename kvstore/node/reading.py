"""acquire → release: the read half of a block's life."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
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
from kvstore.node.promotion import Promoter
from kvstore.node.replicas import Replicas
from kvstore.node.sessions import MAX_HELD, Lease, Session, Sessions
from kvstore.tiers.base import MissReason, Resident, TierKind


@dataclass(frozen=True, slots=True)
class Acquired:
    """`tiers[i]` says where the i-th key was found, or why it was not."""

    lease: Lease
    tiers: Sequence[TierKind | MissReason]


class Leases:
    """Leases of all sessions. Owned by the node's event loop.

    A lease ends `ttl_s` after it was given, whatever its session does: a reader that hangs must not
    hold host memory for ever. The generations of its blocks tell a late reader.
    """

    def __init__(
        self,
        replicas: Replicas,
        sessions: Sessions,
        promoter: Promoter | None,
        executor: Executor,
        clock: Clock,
        ttl_s: float,
    ) -> None:
        self._replicas = replicas
        self._sessions = sessions
        self._promoter = promoter
        self._executor = executor
        self._clock = clock
        self._ttl_s = ttl_s
        self._ids = count(1)
        self.hits: Counter[TierKind] = Counter()
        self.misses: Counter[MissReason] = Counter()
        self.num_corrupt = 0

    async def acquire(self, session: Session, keys: Sequence[BlockKey], wait_s: float) -> Acquired:
        """References on the blocks that are here or come up from disk within `wait_s`."""
        if len(session.leases) >= MAX_HELD:
            raise ResourceExhaustedError(f"the session holds {MAX_HELD} leases; release some")
        residents = self._replicas.host.acquire(keys)
        try:
            tiers = await self._bring_up(keys, residents, wait_s)
            if not self._sessions.is_open(session):
                raise SessionExpiredError("the session ended during the call; open a new one")
        except BaseException:  # also a cancelled call must not keep its references
            self._replicas.host.release(_found(keys, residents))
            raise
        lease = Lease(
            id=LeaseId(next(self._ids)),
            keys=_found(keys, residents),
            residents=[resident for resident in residents if resident is not None],
            expires_at=self._clock() + self._ttl_s,
        )
        if lease.keys:
            session.leases[lease.id] = lease
        self.hits.update(tier for tier in tiers if isinstance(tier, TierKind))
        self.misses.update(miss for miss in tiers if isinstance(miss, MissReason))
        return Acquired(lease, tiers)

    def release(self, session: Session, lease_ids: Iterable[LeaseId]) -> None:
        """Idempotent: a lease that ended by itself is no error."""
        for lease_id in lease_ids:
            if lease := session.leases.pop(lease_id, None):
                self._replicas.host.release(lease.keys)

    def expire(self, session: Session, *, all_: bool = False) -> None:
        now = self._clock()
        for lease in list(session.leases.values()):
            if not all_ and lease.expires_at > now:
                break
            self.release(session, [lease.id])

    def read(
        self, session: Session, lease_id: LeaseId, index: int, start_byte: int, size: int
    ) -> bytes:
        """Copy out part of a leased block, for clients that cannot map the arena; empty at its
        end."""
        resident = self._block(session, lease_id, index)[1]
        end = min(start_byte + size, resident.slot.length_bytes)
        return bytes(self._replicas.host.view(resident.slot)[start_byte:end])

    def num_found(self, session: Session, lease_id: LeaseId) -> int:
        return len(self._live(session, lease_id).keys)

    async def report(self, session: Session, lease_id: LeaseId, indices: Sequence[int]) -> int:
        """A reader found wrong bytes. See for ourselves, drop what is bad; returns how many.

        A copy on disk is verified when it is next brought up.
        """
        blocks = dict(self._block(session, lease_id, index) for index in indices)
        keys = list(blocks)
        self._replicas.host.acquire(keys)
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
        self, keys: Sequence[BlockKey], residents: list[Resident | None], wait_s: float
    ) -> list[TierKind | MissReason]:
        """Fill the holes in `residents` from disk. Returns the tier of, or reason for, each key."""
        tiers: list[TierKind | MissReason] = [TierKind.HOST] * len(keys)
        holes = [i for i, resident in enumerate(residents) if resident is None]
        on_disk = [i for i in holes if self._can_promote(keys[i])]
        for i in holes:
            tiers[i] = self._replicas.why_absent(keys[i])
        if not on_disk:
            return tiers
        assert self._promoter is not None
        claims = self._promoter.claim(keys[i] for i in on_disk)
        try:
            ends = await self._promoter.wait(claims, wait_s)
            for i in on_disk:
                miss = ends[keys[i]]
                if miss is None:
                    (residents[i],) = self._replicas.host.acquire([keys[i]])
                    miss = None if residents[i] else MissReason.CORRUPT  # reported meanwhile
                tiers[i] = TierKind.DISK if miss is None else miss
        finally:
            self._promoter.unclaim(claims)
        return tiers

    def _can_promote(self, key: BlockKey) -> bool:
        if self._promoter is None:
            return False
        if self._replicas.host.pending(key):
            return self._promoter.running(key)
        return self._replicas.on_disk(key)

    def _block(self, session: Session, lease_id: LeaseId, index: int) -> tuple[BlockKey, Resident]:
        lease = self._live(session, lease_id)
        if not 0 <= index < len(lease.keys):
            raise InvalidArgumentError(
                f"indices: {index} is none of the {len(lease.keys)} blocks found by the lease"
            )
        return lease.keys[index], lease.residents[index]

    def _live(self, session: Session, lease_id: LeaseId) -> Lease:
        lease = session.leases.get(lease_id)
        if lease is None or lease.expires_at <= self._clock():
            raise LeaseExpiredError(f"lease {lease_id} ended before this call; acquire again")
        return lease


def _found(keys: Sequence[BlockKey], residents: Sequence[Resident | None]) -> list[BlockKey]:
    return [key for key, resident in zip(keys, residents, strict=True) if resident is not None]

"""Brings blocks that are not in the host tier up from whichever source has them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from kvstore.core.ids import BlockKey
from kvstore.node import arrivals
from kvstore.node.arrivals import Arrival, Arrivals, Claim
from kvstore.node.replicas import Replicas
from kvstore.node.source import Source
from kvstore.tiers.base import MissReason, TierKind

PREFETCH_S = 5.0
"""Time that a prefetch gives what it starts."""


@dataclass(frozen=True, slots=True)
class Prefetched:
    num_resident: int
    num_started: int
    """On their way now, whoever started them."""


class Incoming:
    """The sources of a node, asked in order, nearest first. Owned by the node's event loop."""

    def __init__(self, replicas: Replicas, table: Arrivals, sources: Sequence[Source]) -> None:
        self._replicas = replicas
        self._table = table
        self._sources = sources

    @asynccontextmanager
    async def brought(
        self, keys: Sequence[BlockKey], wait_s: float, *, local: bool
    ) -> AsyncIterator[Mapping[BlockKey, TierKind | MissReason]]:
        """Where each key came from, within `wait_s`, or why it did not; keys that no source has are
        left out. What came cannot be evicted before the end of the context.

        All sources work at the same time. What the disk then fails to give, others may have.
        `local`: nothing from other nodes, not even what is on its way from there, for that may be
        waiting for this very answer.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + wait_s
        claims = await self._claim(keys, self._allowed(local=local), wait_s, local=local)
        more: dict[BlockKey, Claim] = {}
        try:
            ends = await arrivals.wait(claims, end - loop.time())
            if not local and (lost := _lost_by_disk(ends, claims)):
                left_s = max(end - loop.time(), 0)
                more = await self._claim(lost, self._remote_sources(), left_s, local=False)
                ends |= await arrivals.wait(more, end - loop.time())
            yield {key: _outcome(ends[key], (claims | more)[key]) for key in ends}
        finally:
            self._table.unclaim(claims)
            self._table.unclaim(more)

    async def prefetch(self, keys: Sequence[BlockKey], *, local: bool) -> Prefetched:
        """Start the arrival of those that are absent; nobody waits for them."""
        wanted = list(dict.fromkeys(keys))
        absent = [key for key in wanted if key not in self._replicas.host]
        sources = self._allowed(local=local)
        claims = await self._claim(absent, sources, PREFETCH_S, local=local)
        self._table.unclaim(claims)
        num_started = sum(isinstance(claim, Arrival) for claim in claims.values())
        return Prefetched(len(wanted) - len(absent), num_started)

    async def stop(self) -> None:
        for source in self._sources:
            await source.stop()

    async def _claim(
        self, keys: Sequence[BlockKey], sources: Sequence[Source], timeout_s: float, *, local: bool
    ) -> dict[BlockKey, Claim]:
        """Join or start the arrival of each key that one of `sources` has."""
        wanted = dict.fromkeys(keys)
        claims = self._join(wanted, local=local)
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_s
        try:
            for source in sources:
                if rest := [key for key in wanted if key not in claims]:
                    started = await source.claim(rest, max(end - loop.time(), 0))
                    self._table.claim(started)
                    claims |= started
        except BaseException:  # a cancelled call must not keep its claims
            self._table.unclaim(claims)
            raise
        return claims

    def _join(self, keys: Mapping[BlockKey, None], *, local: bool) -> dict[BlockKey, Claim]:
        claims: dict[BlockKey, Claim] = {}
        hanging = [source.kind for source in self._sources if source.hangs()]
        for key in keys:
            arrival = self._table.find(key)
            if arrival is None:
                continue
            if local and arrival.kind is TierKind.REMOTE:
                claims[key] = MissReason.PENDING
            elif arrival.kind in hanging:
                claims[key] = MissReason.LATE
            else:
                claims[key] = arrival
        self._table.claim(claims)
        return claims

    def _allowed(self, *, local: bool) -> Sequence[Source]:
        return [s for s in self._sources if not (local and s.kind is TierKind.REMOTE)]

    def _remote_sources(self) -> Sequence[Source]:
        return [source for source in self._sources if source.kind is TierKind.REMOTE]


def _lost_by_disk(
    ends: Mapping[BlockKey, MissReason | None], claims: Mapping[BlockKey, Claim]
) -> list[BlockKey]:
    """Blocks that are on disk and could not be read from there."""
    bad = (MissReason.CORRUPT, MissReason.FAILED)
    return [
        key
        for key, claim in claims.items()
        if ends[key] in bad and isinstance(claim, Arrival) and claim.kind is TierKind.DISK
    ]


def _outcome(end: MissReason | None, claim: Claim) -> TierKind | MissReason:
    if end is None:
        assert isinstance(claim, Arrival), "only what was on its way can have come"
        return claim.kind
    return end

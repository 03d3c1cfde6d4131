"""Blocks on their way into the host tier, and the readers who wait for them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from kvstore.core.ids import BlockKey
from kvstore.node.replicas import Replicas
from kvstore.tiers.base import BlockInfo, MissReason, TierKind


@dataclass
class Arrival:
    """One block on its way. Every reader that wants it meanwhile waits for this one."""

    kind: TierKind
    """Where it comes from."""
    future: asyncio.Future[MissReason | None]
    """None when it is in the host tier, else why it is not."""
    num_claims: int = 0
    held: bool = False
    """Whether a reference is kept on the block for those who claimed it."""


Claim = Arrival | MissReason
"""What a reader has of a block that it asked for: its arrival, or why there is none."""


class Arrivals:
    """The table of all of them; a block has at most one. Owned by the node's event loop.

    A source calls `begin`, then `arrived` or `settle`. Readers count themselves with `claim` and
    `unclaim`: a block that arrived cannot be evicted until all who claimed it have unclaimed it.
    """

    def __init__(self, replicas: Replicas) -> None:
        self._replicas = replicas
        self._running: dict[BlockKey, Arrival] = {}

    def find(self, key: BlockKey) -> Arrival | None:
        return self._running.get(key)

    def keys(self) -> list[BlockKey]:
        """All blocks on their way."""
        return list(self._running)

    def begin(self, key: BlockKey, kind: TierKind) -> Arrival:
        assert key not in self._running, "a block comes from one source at a time"
        arrival = Arrival(kind, asyncio.get_running_loop().create_future())
        self._running[key] = arrival
        return arrival

    def arrived(self, infos: Sequence[BlockInfo]) -> None:
        """The reserved slots of these blocks hold verified bytes: make them visible, and tell."""
        keys = [info.key for info in infos]
        host = self._replicas.host
        host.commit(keys, [i.length_bytes for i in infos], [i.checksum for i in infos])
        residents = host.acquire(keys)
        assert None not in residents, "committed under the same lock of the loop"
        self._replicas.stored(TierKind.HOST, keys)
        for key in keys:
            self._settle_held(key)

    def present(self, key: BlockKey) -> None:
        """Somebody else stored the block meanwhile."""
        (resident,) = self._replicas.host.acquire([key])
        if resident is None:
            self.settle(key, self._replicas.why_absent(key))
        else:
            self._settle_held(key)

    def settle(self, key: BlockKey, miss: MissReason) -> None:
        """It does not come."""
        self._running.pop(key).future.set_result(miss)

    def claim(self, claims: Mapping[BlockKey, Claim]) -> None:
        for arrival in _arrivals(claims):
            arrival.num_claims += 1

    def unclaim(self, claims: Mapping[BlockKey, Claim]) -> None:
        for key, arrival in claims.items():
            if isinstance(arrival, MissReason):
                continue
            arrival.num_claims -= 1
            if arrival.held and not arrival.num_claims:
                arrival.held = False
                self._replicas.host.release([key])

    def _settle_held(self, key: BlockKey) -> None:
        """It is here, and this call's caller took a reference on it."""
        arrival = self._running.pop(key)
        arrival.future.set_result(None)
        if arrival.num_claims:
            arrival.held = True
        else:
            self._replicas.host.release([key])


async def wait(
    claims: Mapping[BlockKey, Claim], timeout_s: float
) -> dict[BlockKey, MissReason | None]:
    """How each claim ended, LATE for those that go on after `timeout_s`."""
    futures = {arrival.future for arrival in _arrivals(claims)}
    if futures:
        await asyncio.wait(futures, timeout=max(timeout_s, 0))
    return {key: _result(claim) for key, claim in claims.items()}


def _arrivals(claims: Mapping[BlockKey, Claim]) -> Iterator[Arrival]:
    return (claim for claim in claims.values() if isinstance(claim, Arrival))


def _result(claim: Claim) -> MissReason | None:
    if isinstance(claim, MissReason):
        return claim
    return claim.future.result() if claim.future.done() else MissReason.LATE

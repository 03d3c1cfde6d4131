"""Blocks on their way from other nodes into the host tier: a `Source`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from kvstore.client.deadline import Deadline
from kvstore.core.ids import BlockKey, NodeId
from kvstore.directory.base import ClusterView
from kvstore.node.arrivals import Arrival, Arrivals, Claim
from kvstore.node.pull.hedge import Hedge
from kvstore.node.pull.peer import Peer
from kvstore.node.pull.peers import Peers
from kvstore.node.pull.space import ReplicaSpace
from kvstore.node.pull.transfer import Transfer
from kvstore.node.replicas import Replicas, by_layout
from kvstore.tiers.base import MissReason, TierKind

_LOG = logging.getLogger(__name__)

LOCATE_S = 0.25
"""Longest time that finding out where blocks are may take."""
MIN_PULL_S = 0.25
MAX_PULL_S = 5.0
"""A pull has as long as the reader who began it, within these: a hasty reader's few milliseconds
tell nothing of the peer, and a patient one shall not wait for ever for a dead one."""
SHARE_OF_FIRST = 0.5
"""Part of a pull's time that a peer gets while others are left that hold the block, too."""
MAX_PULLS = 256
"""Reads that pull at the same time; the blocks of further ones are misses (LATE)."""


@dataclass
class _Wanted:
    """One block to pull. `peers` hold it, best first, as far as they were not tried."""

    arrival: Arrival
    peers: list[Peer]
    reason: MissReason = MissReason.LATE

    def next_peer(self) -> Peer | None:
        """The best of those left that can be asked now; it is left no more."""
        while self.peers:
            if (peer := self.peers.pop(0)).breaker.ready:
                return peer
            self.reason = MissReason.FAILED
        return None


class Puller:
    """Pulls what the view says that others hold; one pull for each block, however many want it.

    Bounds: `ReplicaSpace` for bytes, MAX_PULLS, and time. A peer that fails costs a miss of the
    blocks that nobody else holds; while its breaker is open it is not asked, and costs nothing.
    """

    kind = TierKind.REMOTE

    def __init__(
        self,
        view: ClusterView,
        peers: Peers,
        replicas: Replicas,
        arrivals: Arrivals,
        space: ReplicaSpace,
        hedge: Hedge | None,
    ) -> None:
        self._view = view
        self._peers = peers
        self._replicas = replicas
        self._arrivals = arrivals
        self._space = space
        self._hedge = hedge
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = False

    async def claim(self, keys: Sequence[BlockKey], timeout_s: float) -> dict[BlockKey, Claim]:
        if self._stopped:
            return {}
        holders = await self.locate(keys, timeout_s)
        return self._start(holders, min(max(timeout_s, MIN_PULL_S), MAX_PULL_S))

    async def locate(
        self, keys: Sequence[BlockKey], timeout_s: float
    ) -> dict[BlockKey, list[Peer]]:
        """The peers that hold each of `keys`, best first; keys that none is known to hold are left
        out."""
        self._peers.refresh()
        if not len(self._peers):
            return {}
        deadline_s = min(timeout_s, LOCATE_S)
        holders: dict[BlockKey, list[Peer]] = {}
        for batch in by_layout(keys):
            found = await self._view.locate(batch, deadline_s=deadline_s)
            ranks = self._peers.ranks()
            for key, replicas in zip(batch, found, strict=True):
                if replicas and (peers := self._peers.holders(replicas, ranks)):
                    holders[key] = peers
        return holders

    async def locate_node(
        self, keys: Sequence[BlockKey], timeout_s: float
    ) -> dict[BlockKey, NodeId]:
        """The node that each of `keys` would be pulled from now."""
        holders = await self.locate(keys, timeout_s)
        usable = ((k, next((p for p in ps if p.breaker.ready), None)) for k, ps in holders.items())
        return {key: peer.record.node_id for key, peer in usable if peer is not None}

    def hangs(self) -> bool:
        """A pull ends with its time, and a peer that hangs has its breaker."""
        return False

    async def stop(self) -> None:
        self._stopped = True
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._peers.stop()

    def _start(self, holders: dict[BlockKey, list[Peer]], pull_s: float) -> dict[BlockKey, Claim]:
        """State may have changed while the blocks were located."""
        claims: dict[BlockKey, Claim] = {}
        wanted: dict[BlockKey, _Wanted] = {}
        for key, peers in holders.items():
            if arrival := self._arrivals.find(key):
                claims[key] = arrival
            elif self._replicas.host.pending(key):
                continue
            elif not any(peer.breaker.ready for peer in peers):
                claims[key] = MissReason.FAILED
            elif self._stopped or len(self._tasks) >= MAX_PULLS:
                claims[key] = MissReason.LATE
            else:
                arrival = claims[key] = self._arrivals.begin(key, self.kind)
                wanted[key] = _Wanted(arrival, peers)
        if wanted:
            task = asyncio.get_running_loop().create_task(self._pull(wanted, Deadline(pull_s)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return claims

    async def _pull(self, wanted: dict[BlockKey, _Wanted], deadline: Deadline) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                self._ask(wanted, group, deadline)
        except Exception:  # the boundary of this task: its claimants must be told in any case
            _LOG.exception("pulling %d blocks failed", len(wanted))
        finally:
            for key in self._unsettled(wanted):
                self._arrivals.settle(key, wanted[key].reason)

    def _ask(
        self, wanted: dict[BlockKey, _Wanted], group: asyncio.TaskGroup, deadline: Deadline
    ) -> None:
        """Ask for each block the best peer that was not asked for it yet. A block that nobody is
        left for is settled: its readers need not wait for the others."""
        if not deadline.left_s:
            return
        by_peer: dict[Peer, list[BlockKey]] = {}
        for key, block in wanted.items():
            if (peer := block.next_peer()) is None:
                self._arrivals.settle(key, block.reason)
            else:
                by_peer.setdefault(peer, []).append(key)
        for peer, keys in by_peer.items():
            others = any(wanted[key].peers for key in keys)
            part = deadline.part(SHARE_OF_FIRST if others else 1.0)
            for batch in by_layout(keys):
                transfer = Transfer(peer, batch, self._space)
                group.create_task(self._run(transfer, wanted, group, part, deadline))

    async def _run(
        self,
        transfer: Transfer,
        wanted: dict[BlockKey, _Wanted],
        group: asyncio.TaskGroup,
        part: Deadline,
        deadline: Deadline,
    ) -> None:
        if self._hedge is None:
            await transfer.run(part)
        else:
            others = {key: wanted[key].peers for key in transfer.keys}
            await self._hedge.run(transfer, others, part)
        for key, reason in transfer.left.items():
            wanted[key].reason = reason
        self._ask({key: wanted[key] for key in transfer.left}, group, deadline)

    def _unsettled(self, wanted: dict[BlockKey, _Wanted]) -> list[BlockKey]:
        """Those still on their way; a key may be on another way by now, under another arrival."""
        return [k for k, block in wanted.items() if self._arrivals.find(k) is block.arrival]

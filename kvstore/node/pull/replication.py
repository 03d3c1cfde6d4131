"""What a node does with the blocks of others: finds them, pulls them, keeps those that are hot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from kvstore.core.ids import BlockKey, NodeId
from kvstore.core.ports import Clock
from kvstore.directory.base import ClusterView
from kvstore.node.arrivals import Arrivals
from kvstore.node.pull.heat import ReplicaHeat
from kvstore.node.pull.hedge import Hedge
from kvstore.node.pull.peer import PeerStatistics, PullerIdentity
from kvstore.node.pull.peers import Peers
from kvstore.node.pull.puller import Puller
from kvstore.node.pull.space import ReplicaSpace
from kvstore.node.replicas import Replicas
from kvstore.tiers.base import TierKind, TierStatistics

MATCH_S = 0.25
"""Longest time that `Match` waits to hear what others have."""


@dataclass(frozen=True, slots=True)
class ReplicationConfig:
    """`view` knows the other nodes; its owner starts and stops it."""

    view: ClusterView
    own: PullerIdentity
    replica_share: float
    """Part of the host tier that replicas may take up."""
    hedge_s: float
    """Time without a block after which a second replica's node is asked; 0 = never."""


@dataclass(frozen=True, slots=True)
class EverywhereMatch:
    """Longest prefix present on this node or another. `nodes` are where the REMOTE blocks would be
    pulled from, in order."""

    tiers: Sequence[TierKind]
    nodes: Sequence[NodeId]


class Replication:
    """Parts and their wiring. Owned by the node's event loop; `stop` ends every pull."""

    def __init__(
        self,
        config: ReplicationConfig,
        replicas: Replicas,
        arrivals: Arrivals,
        heat: ReplicaHeat,
        executor: Executor,
        clock: Clock,
        on_hot: Callable[[Sequence[BlockKey]], None],
    ) -> None:
        """`heat` hears of what leaves the host tier (`HeatSink`); `on_hot` gets replicas that are
        worth a place on this node's disk."""
        max_bytes = int(replicas.host.statistics().capacity_bytes * config.replica_share)
        self._replicas = replicas
        self._peers = Peers(config.view, config.own, clock)
        self._space = ReplicaSpace(replicas, arrivals, heat, max_bytes, on_hot)
        hedge = Hedge(self._space, executor, config.hedge_s) if config.hedge_s else None
        self.puller = Puller(config.view, self._peers, replicas, arrivals, self._space, hedge)

    def read(self, keys: Sequence[BlockKey]) -> None:
        """Blocks were read here, replicas or not."""
        self._space.read(keys)

    async def match(self, keys: Sequence[BlockKey]) -> EverywhereMatch:
        """A hint, as of now: what others have may be gone when it is asked for."""
        here = self._replicas.tiers_of(keys)
        holes = [key for key, tier in zip(keys, here, strict=True) if tier is None]
        there = await self.puller.locate_node(holes, MATCH_S) if holes else {}
        tiers: list[TierKind] = []
        nodes: list[NodeId] = []
        for key, tier in zip(keys, here, strict=True):
            if tier is None and key in there:
                nodes.append(there[key])
                tier = TierKind.REMOTE
            if tier is None:
                break
            tiers.append(tier)
        return EverywhereMatch(tiers, nodes)

    def tick(self) -> None:
        """Follow who comes and goes, and let go of replicas that nobody reads any more."""
        self._peers.refresh()
        self._space.tick()

    @property
    def used_bytes(self) -> int:
        """Of replicas, in the host tier and on their way there."""
        return self._space.used_bytes

    def peers(self) -> list[PeerStatistics]:
        return self._peers.statistics()

    def statistics(self, hits: int) -> TierStatistics:
        """Of the other nodes as a tier: what is here of them. The bytes are part of the host
        tier's."""
        return TierStatistics(
            kind=TierKind.REMOTE,
            capacity_bytes=self._space.max_bytes,
            used_bytes=self._space.used_bytes,
            blocks=len(self._space),
            hits=hits,
            evictions=self._space.num_evicted,
            corruptions=self._peers.num_corrupt,
            errors=self._peers.num_failures,
        )

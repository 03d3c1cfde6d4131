"""The other nodes, as far as the view knows them, each with its connection and its record."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence

from kvstore.core.ids import MemberId, NodeId
from kvstore.core.ports import Clock
from kvstore.directory.base import ClusterView, Replica
from kvstore.node.pull.peer import Peer, PeerStatistics, PullerIdentity

_LOG = logging.getLogger(__name__)

MAX_PEERS = 1_024


class Peers:
    """One `Peer` for each node of the view, in its present life. Owned by the node's event loop.

    A node that left the view, started anew or moved is closed in the background. Bound: MAX_PEERS;
    what further nodes hold is not pulled.
    """

    def __init__(self, view: ClusterView, own: PullerIdentity, clock: Clock) -> None:
        self._view = view
        self._own = own
        self._clock = clock
        self._peers: dict[NodeId, Peer] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._past_failures = self._past_corrupt = 0

    def refresh(self) -> None:
        """Follow the view."""
        nodes = self._view.nodes()
        for node_id, peer in list(self._peers.items()):
            if nodes.get(node_id) != peer.record:
                self._close(self._peers.pop(node_id))
        for node_id, record in nodes.items():
            if node_id in self._peers or node_id == self._own.node_id:
                continue
            if len(self._peers) >= MAX_PEERS:
                _LOG.warning(
                    "more than %d peers: what node %s holds is not used", MAX_PEERS, node_id
                )
                break
            self._peers[node_id] = Peer(record, self._own, self._clock)

    def ranks(self) -> Mapping[NodeId, tuple[bool, float]]:
        """Of each peer, smaller is better: on this host first, then the fastest."""
        return {
            node_id: (not peer.same_host, peer.expected_s) for node_id, peer in self._peers.items()
        }

    def holders(
        self, replicas: Sequence[Replica], ranks: Mapping[NodeId, tuple[bool, float]]
    ) -> list[Peer]:
        """The peers that hold a block, best first. `replicas` come fastest tier first, and so the
        tier decides between equals."""
        nodes = dict.fromkeys(_node_of(replica.publisher) for replica in replicas)
        known = sorted((node for node in nodes if node in ranks), key=ranks.__getitem__)
        return [self._peers[node] for node in known if node in self._peers]

    def statistics(self) -> list[PeerStatistics]:
        return [peer.statistics() for peer in self._peers.values()]

    async def stop(self) -> None:
        """Close all connections. Idempotent."""
        for peer in self._peers.values():
            self._close(peer)
        self._peers.clear()
        if self._closing:
            await asyncio.wait(self._closing)

    @property
    def num_failures(self) -> int:
        """Pulls that failed, of all peers there ever were."""
        return self._past_failures + sum(peer.num_failures for peer in self._peers.values())

    @property
    def num_corrupt(self) -> int:
        """Blocks that came with wrong bytes, from all peers there ever were."""
        return self._past_corrupt + sum(peer.num_corrupt for peer in self._peers.values())

    def _close(self, peer: Peer) -> None:
        self._past_failures += peer.num_failures
        self._past_corrupt += peer.num_corrupt
        task = asyncio.get_running_loop().create_task(peer.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def __len__(self) -> int:
        return len(self._peers)


def _node_of(publisher: MemberId) -> NodeId:
    """A node publishes under its own id. Other publishers are workers: no peer has their id."""
    return NodeId(publisher)

"""The host tiers of the nodes, which together are the shared store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from cluster.simulator.links import Link
from kvstore.core.ids import BlockHash, NodeId
from kvstore.core.ports import Clock
from kvstore.eviction.registry import POLICIES, PolicyName
from kvstore.node.config import NodeConfig

_HIGH: float = float(NodeConfig.model_fields["high_watermark"].default)
_LOW: float = float(NodeConfig.model_fields["low_watermark"].default)

Changed = Callable[[list[BlockHash], list[BlockHash]], None]
"""Told which blocks came and which went."""


class NodeStore:
    """One node: its network port, and its host tier under a production eviction policy.

    Blocks are written when they are computed or pulled. Use beyond the high watermark evicts down
    to the low one; blocks that are being read stay.
    """

    def __init__(
        self,
        node_id: NodeId,
        *,
        capacity_blocks: int,
        policy: PolicyName,
        network_bytes_per_s: float,
        clock: Clock,
        changed: Changed,
    ) -> None:
        self.node_id = node_id
        self.inbound = Link(network_bytes_per_s)
        self.outbound = Link(network_bytes_per_s)
        self.alive = True
        self.incarnation = 1
        """Counts its lives; what was read in an earlier one is void."""
        self.capacity_blocks = capacity_blocks
        self._make_policy = partial(POLICIES[policy], clock)
        self._policy = self._make_policy()
        self._resident: set[BlockHash] = set()
        self._reading: Counter[BlockHash] = Counter()
        self._changed = changed

    def __len__(self) -> int:
        return len(self._resident)

    def run_length(self, blocks: Sequence[BlockHash], start: int) -> int:
        """How many of `blocks[start:]` are here without a gap."""
        if start >= len(blocks) or blocks[start] not in self._resident:
            return 0
        for position in range(start + 1, len(blocks)):
            if blocks[position] not in self._resident:
                return position - start
        return len(blocks) - start

    def touch(self, chain: Sequence[BlockHash]) -> None:
        """A request came by with this prefix."""
        if self.capacity_blocks:
            self._policy.touch(chain)

    def put(self, blocks: Sequence[BlockHash]) -> None:
        """Blocks of one chain are in memory now: those that are not here yet are written."""
        if not self.capacity_blocks:
            return
        new = [block for block in blocks if block not in self._resident]
        if new:
            self._policy.insert(new)
            self._resident.update(new)
            self._changed(new, self._evict())

    def begin_read(self, blocks: Iterable[BlockHash]) -> None:
        self._reading.update(blocks)

    def end_read(self, blocks: Iterable[BlockHash]) -> None:
        self._reading.subtract(blocks)
        self._reading = +self._reading

    def fail(self) -> None:
        """Everything in memory is lost."""
        self.alive = False
        self.incarnation += 1
        self._policy = self._make_policy()
        self._resident.clear()
        self._reading.clear()

    def _evict(self) -> list[BlockHash]:
        if len(self._resident) <= _HIGH * self.capacity_blocks:
            return []
        excess = len(self._resident) - int(_LOW * self.capacity_blocks)
        gone: list[BlockHash] = self._policy.victims(excess, lambda b: b not in self._reading)
        self._resident.difference_update(gone)
        return gone


def longest_elsewhere(
    nodes: Iterable[NodeStore], blocks: Sequence[BlockHash], start: int, own: NodeStore
) -> tuple[NodeStore, int] | None:
    """The live node, other than `own`, with the longest run of `blocks[start:]`; of several the one
    whose port has the fewest readers."""
    best: tuple[NodeStore, int] | None = None
    for node in nodes:
        if node is own or not node.alive:
            continue
        length = node.run_length(blocks, start)
        if length and (best is None or _better(node, length, best)):
            best = node, length
    return best


def _better(node: NodeStore, length: int, than: tuple[NodeStore, int]) -> bool:
    return (length, -len(node.outbound.flows)) > (than[1], -len(than[0].outbound.flows))

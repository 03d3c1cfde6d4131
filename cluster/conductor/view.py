"""The workers of one model in the order of their rows, and who is near whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from cluster.conductor.columns import Flags, Slots
from cluster.conductor.hashing import Words, word
from cluster.conductor.index import Slot
from cluster.conductor.types import Member, Role
from kvstore.core.ids import MemberId, NodeId

Worker = tuple[Slot, Member]


class ModelView:
    """Frozen. Rows are in the order prefill workers, decode workers; each by zone, node, member id.

    `nodes` has the slots of the store nodes that are there.
    """

    def __init__(self, workers: Sequence[Worker], nodes: Mapping[NodeId, Slot]) -> None:
        ordered = sorted(workers, key=_order)
        self.members = [member for _, member in ordered]
        self.slots: Slots = np.array([slot for slot, _ in ordered], dtype=np.intp)
        self.num_prefills = sum(member.role is Role.PREFILL for member in self.members)
        self.candidates = sum(1 << slot for slot, _ in ordered)
        """Bit set of all."""
        self.workers_of = _workers_of(ordered, nodes)
        """For each node that has any of them: their bit set."""
        self.row_of: Slots = np.full(max(self.slots, default=-1) + 1, -1, dtype=np.intp)
        self.row_of[self.slots] = np.arange(len(ordered))
        # A worker without a node stands for itself: nothing is pulled for it.
        self.link_slots: Slots = np.array(
            [nodes.get(member.node_id, slot) for slot, member in ordered], dtype=np.intp
        )
        self.has_node: Flags = np.array([member.node_id in nodes for member in self.members], bool)
        self.names: Words = np.array([word(m.member_id) for m in self.members], dtype=np.uint64)
        """The same for a member wherever it is, whatever its row."""
        self.prefills = self.members[: self.num_prefills]
        self.decodes = self.members[self.num_prefills :]
        self.nearness = Nearness(self.prefills, self.decodes, self.has_node)
        self._workers, self._nodes = workers, nodes

    def without(self, avoid: frozenset[MemberId]) -> ModelView:
        """Without these workers, as far as there are others of their role."""
        kept: list[Worker] = []
        for role in (Role.PREFILL, Role.DECODE):
            able = [worker for worker in self._workers if worker[1].role is role]
            kept += [worker for worker in able if worker[1].member_id not in avoid] or able
        return ModelView(kept, self._nodes)


class Nearness:
    """For each prefill worker, the stretches of decode workers on its node and in its zone.

    Decode workers stand by zone and node, so that the best of each stretch is found in one pass
    (`np.minimum.reduceat`).
    """

    def __init__(
        self, prefills: Sequence[Member], decodes: Sequence[Member], has_node: Flags
    ) -> None:
        nodes = [(member.zone, member.node_id) for member in decodes]
        zones = [member.zone for member in decodes]
        self._decodes = len(decodes)
        self.has_no_node: Flags = ~has_node[: len(prefills)]
        self.node_starts = _starts(nodes)
        self.zone_starts = _starts(zones)
        self.zone_of = _stretches(zones, [member.zone for member in prefills])
        """-1: no decode worker in its zone."""
        self.node_of = _stretches(nodes, [(m.zone, m.node_id) for m in prefills])
        self.node_of[self.has_no_node] = -1
        self.shared_nodes = bool((self.node_of >= 0).any())
        self.several_zones = len({member.zone for member in (*prefills, *decodes)}) > 1

    def zone(self, prefill: int) -> slice:
        """The decode workers in the zone of this prefill worker."""
        return self._stretch(self.zone_starts, int(self.zone_of[prefill]))

    def node(self, prefill: int) -> slice:
        """Those on its node."""
        return self._stretch(self.node_starts, int(self.node_of[prefill]))

    def _stretch(self, starts: Slots, number: int) -> slice:
        if number < 0:
            return slice(0, 0)
        end = starts[number + 1] if number + 1 < len(starts) else self._decodes
        return slice(int(starts[number]), int(end))


def _order(worker: Worker) -> tuple[bool, str, str, str]:
    _, member = worker
    return member.role is not Role.PREFILL, member.zone, member.node_id, member.member_id


def _workers_of(workers: Sequence[Worker], nodes: Mapping[NodeId, Slot]) -> dict[Slot, int]:
    found: dict[Slot, int] = {}
    for slot, member in workers:
        node = nodes.get(member.node_id)
        if node is not None:
            found[node] = found.get(node, 0) | 1 << slot
    return found


def _starts(groups: Sequence[object]) -> Slots:
    changes = [i for i, group in enumerate(groups) if i == 0 or group != groups[i - 1]]
    return np.array(changes, dtype=np.intp)


def _stretches(groups: Sequence[object], wanted: Sequence[object]) -> Slots:
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    return np.array([numbers.get(group, -1) for group in wanted], dtype=np.intp)

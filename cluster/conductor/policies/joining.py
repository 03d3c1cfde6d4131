"""The best decode worker for each prefill worker.

It depends on where the prefill worker is, and on nothing else of it: so one pass over the decode
workers for each distance finds the best of every node, of every zone, and of all.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cluster.conductor.columns import Floats, Slots
from cluster.conductor.prospects import Prospects

JoinCost = Callable[[Prospects, Floats], Floats]


class Joining:
    """For one request. `answer_s`: cost of decoding at each decode worker, but for the hand-over;
    `join_cost`: what a hand-over of so many seconds costs."""

    def __init__(self, prospects: Prospects, answer_s: Floats, join_cost: JoinCost) -> None:
        self._near = prospects.nearness
        self._answer_s = answer_s
        self._join_cost = join_cost
        self._prospects = prospects
        zone_s = self._cost(prospects.decode.join_zone_s)
        best_s = _best_of_stretches(zone_s, self._near.zone_starts)[self._near.zone_of]
        if self._near.several_zones:
            best_s = np.minimum(best_s, self._cost(prospects.decode.join_far_s).min())
        if self._near.shared_nodes:
            node_s = self._cost(prospects.decode.join_near_s)
            node_best_s = _best_of_stretches(node_s, self._near.node_starts)[self._near.node_of]
            best_s = np.minimum(best_s, node_best_s)
        if self._near.has_no_node.any():
            cold_s = self._cost(prospects.decode.join_cold_s).min()
            best_s = np.where(self._near.has_no_node, cold_s, best_s)
        self.best_s: Floats = best_s
        """For each prefill worker: the cost from the first token on."""

    def decode_for(self, prefill: int) -> int:
        """The decode worker that is best for this prefill worker."""
        decode, near = self._prospects.decode, self._near
        if near.has_no_node[prefill]:
            return self._first(self._cost(decode.join_cold_s))
        zone, node = near.zone(prefill), near.node(prefill)
        cost = self._cost(decode.join_far_s)
        cost[zone] = self._cost(decode.join_zone_s)[zone]
        cost[node] = self._cost(decode.join_near_s)[node]
        return self._first(cost)

    def _cost(self, join_s: Floats) -> Floats:
        return self._answer_s + self._join_cost(self._prospects, join_s)

    def _first(self, cost: Floats) -> int:
        """Among equal ones, who has the fewest sequences."""
        return int(np.lexsort((self._prospects.decode.sequences, cost))[0])


def _best_of_stretches(cost: Floats, starts: Slots) -> Floats:
    """The last one, for -1, is of no stretch."""
    return np.append(np.minimum.reduceat(cost, starts), np.inf)

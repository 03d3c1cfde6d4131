"""The scheduling of the Mooncake paper: the shortest time to first token, given who caches what."""

from __future__ import annotations

import numpy as np

from cluster.conductor.columns import Floats
from cluster.conductor.policies.base import Choice
from cluster.conductor.policies.decode import calmest
from cluster.conductor.prospects import Prospects


class LocalCacheAware:
    """Each worker uses what it has itself (and its node)."""

    def choose(self, prospects: Prospects) -> Choice:
        return _soonest(prospects, prospects.prefillers.local_ttft_s)


class GlobalCacheAware:
    """Algorithm 1 of the paper: where another node has more than `balancing_threshold` times the
    prefix of a worker, that worker is taken to pull it.

    So a hot prefix comes to further workers as soon as the first one's queue is longer than the
    transfer.
    """

    def __init__(self, balancing_threshold: float) -> None:
        self._threshold = balancing_threshold

    def choose(self, prospects: Prospects) -> Choice:
        workers = prospects.prefillers
        pulls = workers.can_pull & (workers.on_nodes > self._threshold * workers.own_tokens)
        return _soonest(prospects, np.where(pulls, workers.pulled_ttft_s, workers.local_ttft_s))


def _soonest(prospects: Prospects, ttft_s: Floats) -> Choice:
    row = int(np.lexsort((prospects.prefillers.routed, ttft_s))[0])
    if prospects.prefill is None:
        return Choice(row)
    return Choice(calmest(prospects.decode), row)

"""Policies that know nothing of caches: baselines to compare with."""

from __future__ import annotations

import numpy as np

from cluster.conductor.hashing import mixed
from cluster.conductor.policies.base import Choice
from cluster.conductor.policies.decode import calmest
from cluster.conductor.prospects import Prospects


class Random:
    """Any worker. The same seed and requests give the same choices."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._turn = 0

    def choose(self, prospects: Prospects) -> Choice:
        self._turn += 2
        first, second = mixed(self._seed, np.array([self._turn, self._turn + 1])).tolist()
        decode = first % len(prospects.decode)
        if prospects.prefill is None:
            return Choice(decode)
        return Choice(decode, second % len(prospects.prefill))


class RoundRobin:
    """Each worker in turn."""

    def __init__(self) -> None:
        self._turn = 0

    def choose(self, prospects: Prospects) -> Choice:
        turn, self._turn = self._turn, self._turn + 1
        if prospects.prefill is None:
            return Choice(turn % len(prospects.decode))
        # Not in step with each other: every pair gets its turn, and bursts do not stay together.
        rounds, prefill = divmod(turn, len(prospects.prefill))
        return Choice((prefill + rounds) % len(prospects.decode), prefill)


class LeastLoaded:
    """Whose queue is worked off first; among equal ones, who has the fewest sequences."""

    def choose(self, prospects: Prospects) -> Choice:
        prefill, decode = prospects.prefill, prospects.decode
        if prefill is None:
            alone = prospects.alone
            return Choice(int(np.lexsort((alone.routed, decode.sequences, alone.queue_s))[0]))
        return Choice(calmest(decode), int(np.lexsort((prefill.routed, prefill.queue_s))[0]))

"""How often a prefix was asked for lately, and what that says about a further copy of it."""

from __future__ import annotations

from math import exp

from cluster.conductor.prospects import Prospects
from kvstore.core.ids import RoutingKey

_MEMORY_S = 60.0
_PREFIXES_MAX = 4096
_LEARNING = 0.02


class PrefixHeat:
    """Bounded: the prefix that was asked for least lately is forgotten for a new one.

    A copy of blocks displaces as many others. What that costs is the work to compute them again,
    times the chance that they are asked for: the share of prompts that was found cached lately. But
    if the prefix is hot, the copy serves so many further requests.
    """

    def __init__(self) -> None:
        self._requests: dict[RoutingKey, tuple[float, float]] = {}
        """Of each prefix, by its last block: how many lately, and when the last one came."""
        self._reused = 0.0

    def lost_share(self, prospects: Prospects) -> float:
        """Counts this request in. Returns how much of the work that duplicates its prefix is lost
        to others."""
        request = prospects.request
        best = min(prospects.cached_blocks, len(request.routing_keys))
        if request.routing_keys:
            self._reused += _LEARNING * (best / len(request.routing_keys) - self._reused)
        if not best:
            return 0.0
        return self._reused / (
            1 + self._count(request.routing_keys[best - 1], prospects.context.now_s)
        )

    def _count(self, key: RoutingKey, now_s: float) -> float:
        """How many came lately, this one not included."""
        count, at_s = self._requests.pop(key, (0.0, now_s))
        count *= exp((at_s - now_s) / _MEMORY_S)
        self._requests[key] = count + 1, now_s
        if len(self._requests) > _PREFIXES_MAX:
            del self._requests[next(iter(self._requests))]
        return count

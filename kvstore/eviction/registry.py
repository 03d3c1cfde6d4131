"""Eviction policies by name, as settings and benchmarks call them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from kvstore.core.ports import Clock
from kvstore.eviction.adaptive import Adaptive
from kvstore.eviction.arc import ARC
from kvstore.eviction.base import EvictionPolicy
from kvstore.eviction.cost_aware import CostAware
from kvstore.eviction.learned import Learned
from kvstore.eviction.lfu import LFU
from kvstore.eviction.lru import LRU
from kvstore.eviction.prefix_closed import PrefixClosed
from kvstore.eviction.s3fifo import S3FIFO
from kvstore.eviction.sieve import Sieve

PolicyName = Literal["lru", "lfu", "s3fifo", "sieve", "arc", "cost-aware", "learned", "adaptive"]

_COST_DOUBLES_AFTER_BLOCKS = 64
"""Where attention over what comes before costs as much as everything else that a block costs."""

POLICIES: Mapping[PolicyName, Callable[[Clock], EvictionPolicy[Any]]] = {
    "lru": lambda clock: LRU(),
    "lfu": lambda clock: PrefixClosed(LFU()),
    "s3fifo": lambda clock: S3FIFO(),
    "sieve": lambda clock: PrefixClosed(Sieve()),
    "arc": lambda clock: PrefixClosed(ARC()),
    "cost-aware": lambda clock: PrefixClosed(CostAware(_recompute_cost)),
    "learned": Learned,
    "adaptive": lambda clock: Adaptive([lambda: Learned(clock), S3FIFO]),
}


def _recompute_cost(position: int) -> float:
    return 1 + position / _COST_DOUBLES_AFTER_BLOCKS

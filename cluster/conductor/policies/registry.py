"""Policies by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from cluster.conductor.policies.base import Policy
from cluster.conductor.policies.cache_aware import GlobalCacheAware, LocalCacheAware
from cluster.conductor.policies.joint import Joint
from cluster.conductor.policies.plain import LeastLoaded, Random, RoundRobin
from cluster.conductor.policies.sticky import SessionSticky
from kvstore.core.errors import InvalidArgumentError

BALANCING_THRESHOLD = 1.5
"""Of Algorithm 1; the paper sets it by hand and names no value."""

_POLICIES: Mapping[str, Callable[[int, float], Policy]] = {
    "joint": lambda seed, threshold: Joint(),
    "global-cache-aware": lambda seed, threshold: GlobalCacheAware(threshold),
    "local-cache-aware": lambda seed, threshold: LocalCacheAware(),
    "session-sticky": lambda seed, threshold: SessionSticky(),
    "least-loaded": lambda seed, threshold: LeastLoaded(),
    "round-robin": lambda seed, threshold: RoundRobin(),
    "random": lambda seed, threshold: Random(seed),
}

POLICY_NAMES = tuple(_POLICIES)


def make_policy(
    name: str, seed: int = 0, *, balancing_threshold: float = BALANCING_THRESHOLD
) -> Policy:
    """Raises InvalidArgumentError for a name that is none of `POLICY_NAMES`."""
    if name not in _POLICIES:
        raise InvalidArgumentError(
            f"policy: {name!r} is not known; choose one of {', '.join(POLICY_NAMES)}"
        )
    return _POLICIES[name](seed, balancing_threshold)

"""What is simulated, beside the trace."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import inf
from typing import get_args

from cluster.conductor.admission import AdmissionMode
from cluster.conductor.policies.registry import BALANCING_THRESHOLD, POLICY_NAMES
from cluster.conductor.types import Targets
from cluster.membership.registrar import HEARTBEAT_S
from cluster.simulator.profiles import Profile
from kvstore.core.errors import ConfigurationError
from kvstore.eviction.registry import POLICIES, PolicyName


@dataclass(frozen=True)
class SimulationOptions:
    """Raises ConfigurationError for values that make no cluster.

    Each instance has a node of its own.
    """

    profile: Profile
    policy: str = "joint"
    workers: int = 0
    """Instances that prefill and decode; or else:"""
    prefill: int = 0
    decode: int = 0
    balancing_threshold: float = BALANCING_THRESHOLD
    """Of the policy global-cache-aware."""
    admission: AdmissionMode = "predictive"
    targets: Targets = field(default_factory=Targets)
    seed: int = 0
    eviction: PolicyName = "adaptive"
    """Of the host tiers."""
    event_delay_s: float = 0.0
    """Until the conductor hears of a block that came or went."""
    heartbeat_s: float = HEARTBEAT_S
    member_ttl_s: float = 5.0
    """Silent for so long, a dead instance is forgotten by the conductor."""
    mtbf_s: float = inf
    """Mean time between failures of one instance, whose node fails with it."""
    repair_s: float = 60.0

    def __post_init__(self) -> None:
        counts = (self.workers, self.prefill, self.decode)
        pair = self.prefill > 0 and self.decode > 0
        if min(counts) < 0 or (self.workers > 0) == pair or (self.workers and any(counts[1:])):
            raise ConfigurationError(
                f"workers {self.workers}, prefill {self.prefill}, decode {self.decode}: give either"
                " a number of workers, or one of prefill and one of decode workers"
            )
        for name in ("balancing_threshold", "heartbeat_s", "member_ttl_s", "mtbf_s", "repair_s"):
            _check_positive(name, getattr(self, name))
        for name in ("ttft_s", "itl_s"):
            _check_positive(f"target {name}", getattr(self.targets, name))
        if not 0 <= self.event_delay_s < inf:
            raise ConfigurationError(f"event_delay_s {self.event_delay_s}: a number >= 0")
        _check_among("eviction", self.eviction, POLICIES)
        _check_among("policy", self.policy, POLICY_NAMES)
        _check_among("admission", self.admission, get_args(AdmissionMode))

    @property
    def has_failures(self) -> bool:
        return self.mtbf_s < inf


def _check_among(name: str, value: str, accepted: Iterable[str]) -> None:
    if value not in accepted:
        raise ConfigurationError(f"{name} {value!r}: one of {', '.join(accepted)}")


def _check_positive(name: str, value: float) -> None:
    if not value > 0:
        raise ConfigurationError(f"{name} {value}: a number > 0")

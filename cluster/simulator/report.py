"""What came out of a simulation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np

from cluster.conductor.types import ConductorStatistics
from cluster.simulator.fleet import Fleet
from cluster.simulator.options import SimulationOptions
from cluster.simulator.sequence import Ending, Record


@dataclass(frozen=True, slots=True)
class Sample:
    """The load of the cluster at one moment."""

    time_s: float
    waiting_tokens: int
    """Prompt tokens to be computed, on all instances that prefill."""
    decoding: int
    """Sequences on all instances that decode."""


@dataclass(frozen=True, slots=True)
class Distribution:
    mean: float
    p50: float
    p90: float
    p99: float

    @staticmethod
    def of_seconds(values: Sequence[float]) -> Distribution:
        """In milliseconds; all 0 of none."""
        if not values:
            return Distribution(0.0, 0.0, 0.0, 0.0)
        p50, p90, p99 = np.percentile(np.array(values) * 1e3, (50, 90, 99)).tolist()
        return Distribution(float(np.mean(values)) * 1e3, p50, p90, p99)

    def as_json(self) -> dict[str, float]:
        return {name: round(getattr(self, name), 3) for name in ("mean", "p50", "p90", "p99")}


@dataclass(frozen=True)
class Report:
    """Figures of one run. `good`: completed, and both targets met."""

    requests: int
    good: int
    completed: int
    rejected: int
    failed: int
    reasons: dict[str, int]
    """Of those rejected or failed."""
    hit_ratio: float
    """Share of the prompt tokens of completed requests that were not computed, and by tier:"""
    hit_ratios: dict[str, float]
    ttft_ms: Distribution
    itl_ms: Distribution
    """Over requests; of each, the mean time between its tokens."""
    load_max_over_mean: float
    """Of the prompt tokens that the instances computed."""
    preemptions: int
    pulled_bytes: int
    """From other nodes' host tiers."""
    prediction_errors: dict[str, float]
    """Of the conductor at the end: moving averages of |predicted - observed| / observed."""
    duration_s: float
    samples: Sequence[Sample]
    records: Sequence[Record]

    def as_json(self) -> dict[str, Any]:
        return {
            "requests": self.requests,
            "good": self.good,
            "completed": self.completed,
            "rejected": self.rejected,
            "failed": self.failed,
            "reasons": self.reasons,
            "hit_ratio": round(self.hit_ratio, 6),
            "hit_ratios": {tier: round(ratio, 6) for tier, ratio in self.hit_ratios.items()},
            "ttft_ms": self.ttft_ms.as_json(),
            "itl_ms": self.itl_ms.as_json(),
            "load_max_over_mean": round(self.load_max_over_mean, 4),
            "preemptions": self.preemptions,
            "pulled_gb": round(self.pulled_bytes / 1e9, 3),
            "prediction_errors": {k: round(v, 4) for k, v in self.prediction_errors.items()},
            "duration_s": round(self.duration_s, 3),
        }


def make_report(
    options: SimulationOptions,
    records: Sequence[Record],
    fleet: Fleet,
    samples: Sequence[Sample],
    conductor: ConductorStatistics,
    pulled_bytes: int,
) -> Report:
    completed = [record for record in records if record.ending is Ending.COMPLETED]
    endings = Counter(record.ending for record in records)
    prompt_tokens = sum(record.request.prompt_tokens for record in completed)
    tokens = {
        "device": sum(record.device_tokens for record in completed),
        "host": sum(record.host_tokens for record in completed),
        "remote": sum(record.remote_tokens for record in completed),
    }
    return Report(
        requests=len(records),
        good=sum(is_good(record, options) for record in completed),
        completed=len(completed),
        rejected=endings[Ending.REJECTED],
        failed=endings[Ending.FAILED],
        reasons=dict(sorted(Counter(r.reason for r in records if r.reason).items())),
        hit_ratio=sum(tokens.values()) / max(1, prompt_tokens),
        hit_ratios={tier: count / max(1, prompt_tokens) for tier, count in tokens.items()},
        ttft_ms=Distribution.of_seconds([record.ttft_s for record in completed]),
        itl_ms=Distribution.of_seconds([r.itl_s for r in completed if r.itl_s is not None]),
        load_max_over_mean=_imbalance([unit.instance.prefill_tokens for unit in fleet]),
        preemptions=sum(record.preempted for record in records),
        pulled_bytes=pulled_bytes,
        prediction_errors={"ttft": conductor.ttft_error, "itl": conductor.itl_error},
        duration_s=max((record.last_token_s for record in records), default=0.0),
        samples=samples,
        records=records,
    )


def is_good(record: Record, options: SimulationOptions) -> bool:
    """A single token has no time between tokens to miss a target with."""
    itl_s = record.itl_s
    return record.ttft_s <= options.targets.ttft_s and (itl_s or -inf) <= options.targets.itl_s


def _imbalance(tokens: Sequence[int]) -> float:
    used = [count for count in tokens if count] or [1]
    return max(used) * len(used) / sum(used)

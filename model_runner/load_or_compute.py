"""Whether to load blocks or to compute them: per request, from what both cost lately.

Reuse pays where a block comes sooner than it is computed (Eq. 2 of the Mooncake paper). There, both
sides are data sheets; here, they are what the last steps and loads took.

```
 blocks:  [ on the device ][ loaded: k ][ computed ................... ]
 seconds:  max(load(k), wait for the others' prompts) + compute(rest)    the smallest one wins
```
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvstore.core.regression import LinearModel
from kvstore.tiers.base import TierKind
from model_runner.tier_cost import Rate, TierCost

_LOG = logging.getLogger(__name__)

_STEP_PRIOR = (0.005, 0.1, 0.01)
"""Seconds: a step; 1,000 tokens; 1,000,000 pairs of a token and one that it attends to."""
_LOAD_PRIORS = {
    TierKind.HOST: Rate(0.001, 0.2),
    TierKind.DISK: Rate(0.002, 1.0),
    TierKind.REMOTE: Rate(0.003, 1.0),
}
"""Good hardware, so that each tier is tried."""

TIE_S = 0.02
"""What is within it is a tie, and loaded: a load leaves the device to others."""
_SURPRISE_MAX = 4.0
"""A step counts as at most so many times what was expected: the first one of a process takes long,
and those after it soon say the same if they do, too."""


@dataclass(frozen=True, slots=True)
class StepWork:
    """What a step computed."""

    num_tokens: int
    num_pairs: float
    """Of a token and one that it attends to."""

    @property
    def features(self) -> tuple[float, float, float]:
        return 1.0, self.num_tokens / 1e3, self.num_pairs / 1e6


@dataclass(frozen=True, slots=True)
class EngineBacklog:
    """What else the engine has to do."""

    decoding: int = 0
    """Sequences that take a token of every step."""
    prompt_tokens: int = 0
    """Of prompts under way, still to compute."""


@dataclass(frozen=True, slots=True)
class Offer:
    """Blocks of one request that the store has, and what is to do if they are not loaded."""

    tiers: Sequence[TierKind]
    """Of the leading blocks after those on the device; of several KV groups, the slowest."""
    block_bytes: int
    """Of all KV groups together."""
    block_size_tokens: int
    first_block: int
    """How many blocks are on the device."""
    num_tokens: int
    """Of the request."""


@dataclass(frozen=True, slots=True)
class PlannerStatistics:
    """A snapshot of what is believed, and how often it mattered."""

    step_s: tuple[float, float, float]
    """Seconds a step, a thousand tokens, a million pairs of tokens."""
    rates: Mapping[TierKind, Rate]
    recomputed_blocks: Mapping[TierKind, int]
    """There, and computed by choice."""


class LoadPlanner:
    """Learns what steps and loads cost, and chooses between them. Thread-safe; reads no clock.

    The engine tells it of steps and of its backlog, the store connector of loads. Cost: some
    microseconds for a step, some ten for a choice.
    """

    def __init__(self, *, max_step_tokens: int) -> None:
        self._max_step_tokens = max_step_tokens
        self._lock = threading.Lock()
        self._step = LinearModel(_STEP_PRIOR)
        self._tiers = {tier: TierCost(prior) for tier, prior in _LOAD_PRIORS.items()}
        self._recomputed: Counter[TierKind] = Counter()
        self.backlog = EngineBacklog()
        """Set by the engine as it changes."""

    def observe_step(self, work: StepWork, seconds: float) -> None:
        """For steps that compute prompts: others say little about what a prompt's tokens cost."""
        with self._lock:
            bound_s = _SURPRISE_MAX * self._step.predict(work.features)
            self._step.observe(work.features, min(seconds, bound_s))

    def observe_load(
        self, loaded_bytes: Mapping[TierKind, int], took_s: float, now_s: float
    ) -> None:
        """Without the wait for its turn. Of several tiers, each answers for the part of the time
        that was expected of it."""
        with self._lock:
            expected = {
                tier: self._tiers[tier].rate(now_s).predict_s(length)
                for tier, length in loaded_bytes.items()
                if length
            }
            whole_s = sum(expected.values())
            for tier, part_s in expected.items():
                self._tiers[tier].observe(loaded_bytes[tier], took_s * part_s / whole_s, now_s)

    def blocks_to_load(self, offer: Offer, now_s: float) -> int:
        """How many of the leading blocks to load; the rest is cheaper to compute."""
        num_offered = len(offer.tiers)
        if not num_offered:
            return 0
        with self._lock:
            seconds = self._seconds(offer, now_s)
            chosen = int(np.flatnonzero(seconds <= seconds.min() + TIE_S)[-1])
            self._recomputed.update(offer.tiers[chosen:])
        if chosen < num_offered:
            _LOG.debug(
                "loading %d of %d blocks: %.4f s, all of them: %.4f s, none: %.4f s",
                *(chosen, num_offered, seconds[chosen], seconds[-1], seconds[0]),
            )
        return chosen

    def statistics(self, now_s: float) -> PlannerStatistics:
        with self._lock:
            step, thousand, million = self._step.coefficients
            return PlannerStatistics(
                (step, thousand, million),
                {tier: cost.rate(now_s) for tier, cost in self._tiers.items()},
                dict(self._recomputed),
            )

    def _seconds(self, offer: Offer, now_s: float) -> npt.NDArray[np.float64]:
        """`[k]`: to the request's next token, if k blocks are loaded."""
        backlog = self.backlog
        first, block = offer.first_block, offer.block_size_tokens
        starts = np.arange(first, first + len(offer.tiers) + 1) * block
        tokens = offer.num_tokens - starts
        pairs = (float(offer.num_tokens) ** 2 - starts.astype(np.float64) ** 2) / 2
        compute_s = self._compute_s(tokens, pairs, backlog.decoding)
        queued = np.array([backlog.prompt_tokens])
        queue_s = self._compute_s(queued, queued.astype(np.float64) ** 2 / 2, backlog.decoding)
        return np.maximum(self._load_s(offer, now_s), queue_s) + compute_s

    def _compute_s(
        self, tokens: npt.NDArray[np.int64], pairs: npt.NDArray[np.float64], decoding: int
    ) -> npt.NDArray[np.float64]:
        """In steps that they share with the sequences that decode."""
        step, thousand, million = self._step.coefficients
        steps = np.ceil(tokens / max(1, self._max_step_tokens - decoding))
        shared = step + thousand * decoding / 1e3
        return np.asarray(steps * shared + thousand * tokens / 1e3 + million * pairs / 1e6)

    def _load_s(self, offer: Offer, now_s: float) -> npt.NDArray[np.float64]:
        tiers = np.array([0, *offer.tiers])
        seconds = np.zeros(len(tiers))
        for tier in set(offer.tiers):
            rate = self._tiers[tier].rate(now_s)
            count = np.cumsum(tiers == tier)
            each_s = rate.s_per_gb * offer.block_bytes / 1e9
            seconds += np.where(count > 0, rate.latency_s, 0.0) + each_s * count
        return seconds

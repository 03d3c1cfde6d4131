"""How likely a conversation goes on, by how long it has been silent and what is known of it.

A proportional-hazards model on age bins: `hazard(age, features) = base(age) x product of one ratio
for each feature`. Base and ratios are counts of what happened over what was expected, so that
fitting is a handful of histogram sums. What has not come back *yet* counts as waiting, not as never
(right-censored).

Idea of class-wise reuse probabilities: 'KVCache Cache in the Wild' (ATC'25). The index that turns a
hazard into a rank is Gittins' (1979): the best rate of reuse per second that keeping the blocks for
some more time can yield.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

AGE_EDGES_S = np.concatenate([[0.0], np.geomspace(4.0, 4000.0, 23)])
"""Start of each age bin; reuse later than the last edge falls into the last bin."""
_WIDTHS_S = np.diff(np.append(AGE_EDGES_S, 2 * AGE_EDGES_S[-1]))
_NUM_BINS = len(AGE_EDGES_S)
_PHASE = np.digitize(AGE_EDGES_S, (60.0, 240.0))
"""A feature may matter early and not late: each ratio is fitted for three phases of age."""
_NUM_PHASES = 3
_RATIO_PRIOR = 20.0
_BASE_PRIOR = 5.0
_RATIO_MAX = 8.0
_HAZARD_MAX = 0.95
_ROUNDS = 2


def age_bin(age_s: npt.ArrayLike) -> Ints:
    bins: Ints = np.searchsorted(AGE_EDGES_S, age_s, side="right") - 1
    return bins


@dataclass(frozen=True)
class Observations:
    """n silences: how long they lasted (so far), whether they ended in a reuse, and their feature
    levels."""

    duration_s: Floats
    reused: npt.NDArray[np.bool_]
    levels: Ints  # [n, features]


@dataclass(frozen=True)
class HazardModel:
    """Probability of reuse in each age bin, given none before."""

    base: Floats  # [bins]
    ratios: list[Floats]  # one for each feature: [levels, phases]

    def hazard(self, levels: tuple[int, ...]) -> Floats:
        factor = np.ones(_NUM_PHASES)
        for ratio, level in zip(self.ratios, levels, strict=True):
            if level < len(ratio):
                factor = factor * ratio[level]
        hazard: Floats = np.minimum(self.base * factor[_PHASE], _HAZARD_MAX)
        return hazard


def fit(seen: Observations) -> HazardModel:
    """Fit by cyclic reweighting; each ratio leans to 1 until about 20 reuses speak for another
    value."""
    bins = age_bin(seen.duration_s)
    base = _base_hazard(bins, seen.reused)
    exposure = _expected_reuses(base, bins, seen.reused)
    levels = [seen.levels[:, f] for f in range(seen.levels.shape[1])]
    ratios = [np.ones((int(level.max()) + 1, _NUM_PHASES)) for level in levels]
    for _ in range(_ROUNDS):
        for f, level in enumerate(levels):
            others = exposure.copy()
            for g, other in enumerate(levels):
                if g != f:
                    others *= ratios[g][other]
            ratios[f] = _refit(level, others, bins, seen.reused, len(ratios[f]))
    return HazardModel(base, ratios)


def _base_hazard(bins: Ints, reused: npt.NDArray[np.bool_]) -> Floats:
    reuses = np.bincount(bins[reused], minlength=_NUM_BINS).astype(float)
    ended = np.bincount(bins, minlength=_NUM_BINS)
    at_risk = ended[::-1].cumsum()[::-1] - 0.5 * (ended - reuses)
    mean = reuses.sum() / at_risk.sum()
    result: Floats = (reuses + _BASE_PRIOR * mean) / (at_risk + _BASE_PRIOR)
    return result


def _expected_reuses(base: Floats, bins: Ints, reused: npt.NDArray[np.bool_]) -> Floats:
    """[n, phases]: reuses that the base hazard alone would have brought during each silence."""
    passed = np.zeros((_NUM_PHASES, _NUM_BINS + 1))
    for phase in range(_NUM_PHASES):
        passed[phase, 1:] = np.cumsum(np.where(phase == _PHASE, base, 0.0))
    exposure = passed[:, bins].T.copy()
    exposure[np.arange(len(bins)), _PHASE[bins]] += np.where(reused, 1.0, 0.5) * base[bins]
    return exposure


def _refit(
    level: Ints, expected: Floats, bins: Ints, reused: npt.NDArray[np.bool_], num_levels: int
) -> Floats:
    ratio = np.empty((num_levels, _NUM_PHASES))
    for phase in range(_NUM_PHASES):
        happened = np.bincount(level[reused & (_PHASE[bins] == phase)], minlength=num_levels)
        weight = np.bincount(level, weights=expected[:, phase], minlength=num_levels)
        ratio[:, phase] = (happened + _RATIO_PRIOR) / (weight + _RATIO_PRIOR)
    return np.clip(ratio, 1 / _RATIO_MAX, _RATIO_MAX)


def keep_index(hazard: Floats) -> Floats:
    """[bins]: best reuses per second of keeping, over all times to keep it for, given each age
    reached without reuse."""
    survival = np.concatenate([[1.0], np.cumprod(1 - hazard)])
    reuses = np.concatenate([[0.0], np.cumsum(survival[:-1] * hazard)])
    seconds = np.concatenate([[0.0], np.cumsum(_WIDTHS_S * (survival[:-1] + survival[1:]) / 2)])
    gain = reuses[None, 1:] - reuses[:-1, None]
    cost = seconds[None, 1:] - seconds[:-1, None]
    rate = np.where(cost > 0, gain / np.where(cost > 0, cost, 1.0), 0.0)
    result: Floats = np.triu(rate).max(axis=1)
    return result

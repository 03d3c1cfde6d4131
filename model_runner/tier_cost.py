"""What a load from a tier costs: a latency and a bandwidth, learned from loads."""

from __future__ import annotations

from dataclasses import dataclass

_KEPT = 0.8
"""Of the evidence so far, with each load: about the last five decide."""
_HALF_LIFE_S = 10.0
"""Of the evidence, as time passes without a load."""
_PRIOR_LOADS = 0.5
"""How many loads the prior is worth."""
_SHAPE = 0.01
"""How much, beside the loads, the prior's proportion of latency to bandwidth is believed. Decides
where all loads are of one size."""
_SHORTEST_S = 1e-6
_SURPRISE_MIN = 4.0
_SURPRISE_MIN_S = 0.01
"""A load is a surprise if it took longer than this, and than so many times what was expected."""


@dataclass(frozen=True, slots=True)
class Rate:
    """Seconds of a load: `latency_s + s_per_gb * gigabytes`."""

    latency_s: float
    s_per_gb: float

    def predict_s(self, length_bytes: int) -> float:
        return self.latency_s + self.s_per_gb * length_bytes / 1e9


class TierCost:
    """Learns the rate of one tier. Pure: the time is passed in.

    Least squares of the relative errors, in which older loads weigh ever less. The estimate lies
    between what the loads say and the prior, by the evidence that is left of the loads: so a tier
    that nobody loads from any more, for it was slow, is one day believed to be as fast as the
    prior, and tried again. The slower it was, the longer that takes.

    A load that is much slower than expected may have been held up by chance: it is put aside. The
    next such one is believed, and if it comes right after, what was before forgotten.
    """

    def __init__(self, prior: Rate) -> None:
        self._prior = prior
        self._loads = 0.0
        """Weight of the evidence; each sum below decays with it."""
        self._aa = self._ab = self._bb = self._a = self._b = 0.0
        self._at_s = 0.0
        self._surprised = False
        """By the last load."""
        self._put_aside = False
        """The last surprise was."""

    def rate(self, now_s: float) -> Rate:
        if not self._loads:
            return self._prior
        loads = self._loads * self._decay(now_s)
        learned, trust = self._fit(), loads / (loads + _PRIOR_LOADS)
        return Rate(
            trust * learned.latency_s + (1 - trust) * self._prior.latency_s,
            trust * learned.s_per_gb + (1 - trust) * self._prior.s_per_gb,
        )

    def observe(self, length_bytes: int, seconds: float, now_s: float) -> None:
        kept = _KEPT * self._decay(now_s)
        expected_s = self.rate(now_s).predict_s(length_bytes)
        bound_s = max(_SURPRISE_MIN * expected_s, _SURPRISE_MIN_S)
        before, self._surprised = self._surprised, seconds > bound_s
        if self._surprised:
            self._put_aside = not self._put_aside
            if self._put_aside:
                return
            kept = 0.0 if before else kept
        self._add(kept, length_bytes, max(seconds, _SHORTEST_S))
        self._at_s = max(self._at_s, now_s)

    def _add(self, kept: float, length_bytes: int, seconds: float) -> None:
        a, b = 1 / seconds, length_bytes / 1e9 / seconds
        self._loads = kept * self._loads + 1
        self._aa = kept * self._aa + a * a
        self._ab = kept * self._ab + a * b
        self._bb = kept * self._bb + b * b
        self._a = kept * self._a + a
        self._b = kept * self._b + b

    def _decay(self, now_s: float) -> float:
        return float(0.5 ** (max(0.0, now_s - self._at_s) / _HALF_LIFE_S))

    def _fit(self) -> Rate:
        """Least squares, with the prior's proportions where the loads leave them open."""
        latency, slope = self._prior.latency_s, self._prior.s_per_gb
        norm = latency**2 * self._aa + 2 * latency * slope * self._ab + slope**2 * self._bb
        factor = (latency * self._a + slope * self._b) / norm
        aa, bb = (1 + _SHAPE) * self._aa, (1 + _SHAPE) * self._bb
        right_a = self._a + _SHAPE * self._aa * factor * latency
        right_b = self._b + _SHAPE * self._bb * factor * slope
        determinant = aa * bb - self._ab**2
        fitted = (
            (bb * right_a - self._ab * right_b) / determinant,
            (aa * right_b - self._ab * right_a) / determinant,
        )
        if fitted[0] < 0:
            return Rate(0.0, right_b / bb)
        if fitted[1] < 0:
            return Rate(right_a / aa, 0.0)
        return Rate(*fitted)

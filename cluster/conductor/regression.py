"""Recursive least squares: a linear model that learns from one observation at a time."""

from __future__ import annotations

from collections.abc import Sequence
from operator import mul

_FORGETTING = 0.99
"""An observation counts half as much after about 70 more."""

_VARIANCE_MAX = 1e6
"""Keeps what is never observed from growing without end as the rest is forgotten."""


class LinearModel:
    """`y = sum(coefficient * feature)`, starting from a prior; coefficients stay at or above zero.

    Times do not shrink with work, so a coefficient that noise drives below zero is set to zero.
    Errors count relative to the prediction, so that short and long requests teach alike. Scale
    features to about 1.
    """

    def __init__(self, prior: Sequence[float], *, variance: float = 1e3) -> None:
        """`variance` is how little the prior is believed."""
        self._coefficients = list(prior)
        size = len(prior)
        self._covariance = [[variance * (i == j) for j in range(size)] for i in range(size)]
        self._observations = 0

    @property
    def coefficients(self) -> tuple[float, ...]:
        return tuple(self._coefficients)

    @property
    def observations(self) -> int:
        return self._observations

    def predict(self, features: Sequence[float]) -> float:
        return sum(map(mul, self._coefficients, features), 0.0)

    def observe(self, features: Sequence[float], y: float) -> None:
        predicted = self.predict(features)
        weight = 1 / max(predicted, 1e-4)
        x = [weight * feature for feature in features]
        error = weight * (y - predicted)
        projected = [sum(map(mul, row, x)) for row in self._covariance]
        scale = 1 / (_FORGETTING + sum(map(mul, projected, x)))
        gain = [scale * p for p in projected]
        self._coefficients = [
            max(0.0, c + g * error) for c, g in zip(self._coefficients, gain, strict=True)
        ]
        self._covariance = [
            [(value - g * p) / _FORGETTING for value, p in zip(row, projected, strict=True)]
            for row, g in zip(self._covariance, gain, strict=True)
        ]
        self._bound()
        self._observations += 1

    def _bound(self) -> None:
        largest = max(row[i] for i, row in enumerate(self._covariance))
        if largest > _VARIANCE_MAX:
            shrink = _VARIANCE_MAX / largest
            self._covariance = [[shrink * value for value in row] for row in self._covariance]

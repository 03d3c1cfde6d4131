"""Least squares: a linear model that learns from one observation at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import mul

import numpy as np
import numpy.typing as npt

from kvstore.core.errors import InvalidArgumentError

_FORGETTING = 0.99
"""An observation counts half as much after about 70 more."""

_RIDGE = 1e-6
"""Share of certainty by which what observations cannot tell apart stays as it is."""

_FAR = 5.0
"""An observation so many times larger or smaller than predicted weighs by its own size."""

_SMALLEST = 1e-4

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LinearState:
    """All that a model has learned, as numbers: for n features n, n, n x n (row by row) and n."""

    coefficients: tuple[float, ...]
    least: tuple[float, ...]
    certainty: tuple[float, ...]
    moment: tuple[float, ...]
    observations: int


class LinearModel:
    """`y = sum(coefficient * feature)`, starting from a prior; coefficients stay at or above zero.

    Times do not shrink with work, so a feature whose coefficient would come out below zero is left
    out. Errors count relative to the prediction, so that short and long requests teach alike. Scale
    features to about 1. An observation costs about 50 us.
    """

    def __init__(self, prior: Sequence[float], *, doubt: float = 30.0) -> None:
        """`doubt`: the prior may be off by so many times itself; one observation at the prior's own
        size then weighs `doubt` squared times as much as it."""
        start = np.array(prior, dtype=np.float64)
        self._coefficients = start
        self._least = _RIDGE / (doubt * np.maximum(start, _SMALLEST)) ** 2
        self._certainty: npt.NDArray[np.float64] = np.diag(self._least / _RIDGE)
        self._moment: Vector = self._certainty @ start
        self._observations = 0

    @classmethod
    def of(cls, state: LinearState, features: int) -> LinearModel:
        """The model whose `state` this was. Raises InvalidArgumentError if it is none of a model
        with so many features."""
        model = cls((0.0,) * features)
        model._coefficients = _vector(state.coefficients, features)
        model._least = _vector(state.least, features)
        model._certainty = _vector(state.certainty, features**2).reshape(features, features)
        model._moment = _vector(state.moment, features)
        model._observations = state.observations
        if (model._coefficients < 0).any() or (model._certainty.diagonal() <= 0).any():
            raise InvalidArgumentError("coefficients must not be negative, and all be certain")
        return model

    def state(self) -> LinearState:
        return LinearState(
            self.coefficients,
            tuple(self._least.tolist()),
            tuple(self._certainty.ravel().tolist()),
            tuple(self._moment.tolist()),
            self._observations,
        )

    @property
    def coefficients(self) -> tuple[float, ...]:
        return tuple(self._coefficients.tolist())

    @property
    def observations(self) -> int:
        return self._observations

    def predict(self, features: Sequence[float]) -> float:
        return sum(map(mul, self._coefficients.tolist(), features), 0.0)

    def observe(self, features: Sequence[float], y: float) -> None:
        size = min(max(self.predict(features), y / _FAR), y * _FAR)
        x = np.array(features, dtype=np.float64) / max(size, _SMALLEST)
        self._certainty = _FORGETTING * self._certainty + np.outer(x, x)
        self._moment = _FORGETTING * self._moment + x * (y / max(size, _SMALLEST))
        self._remember_unseen()
        self._coefficients = self._solve()
        self._observations += 1

    def _remember_unseen(self) -> None:
        """What is never observed is not forgotten altogether."""
        missing = np.maximum(self._least - self._certainty.diagonal(), 0.0)
        self._certainty += np.diag(missing)
        self._moment += missing * self._coefficients

    def _solve(self) -> Vector:
        """In units in which all features are equally certain, so that none drowns."""
        scale = np.sqrt(self._certainty.diagonal())
        matrix = self._certainty / np.outer(scale, scale) + _RIDGE * np.eye(len(scale))
        right = self._moment / scale + _RIDGE * self._coefficients * scale
        found = np.zeros_like(right)
        used = np.arange(len(right))
        while len(used):
            solved = np.linalg.solve(matrix[np.ix_(used, used)], right[used])
            if (solved >= 0).all():
                found[used] = solved
                break
            used = used[solved > 0]
        result: Vector = found / scale
        return result


def _vector(values: Sequence[float], length: int) -> Vector:
    vector = np.array(values, dtype=np.float64)
    if vector.shape != (length,) or not np.isfinite(vector).all():
        raise InvalidArgumentError(f"a model's state must have {length} finite numbers here")
    return vector

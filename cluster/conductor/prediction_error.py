"""How far predictions were off."""

from __future__ import annotations

from dataclasses import dataclass

_WEIGHT = 0.1


@dataclass(slots=True)
class PredictionError:
    """Moving average of |predicted - observed| / observed; 0 before the first observation."""

    mean: float = 0.0
    judged: int = 0

    def judge(self, predicted: float, observed: float) -> None:
        error = abs(predicted - observed) / observed
        self.judged += 1
        self.mean += max(_WEIGHT, 1 / self.judged) * (error - self.mean)

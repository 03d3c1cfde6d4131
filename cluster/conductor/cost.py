"""What a request costs on a worker: predicted from its size, learned from how requests went."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.conductor.regression import LinearModel

_PREFILL_PRIOR = (0.005, 0.1, 0.01)
"""Seconds: a step; 1,000 tokens; 1,000,000 pairs of a token and one that it attends to."""
_LOAD_PRIOR = (0.002, 0.5, 2.0)
"""Seconds: the way to the worker and back; a GB from host memory; a GB from disk."""
_ITL_PRIOR = (0.02, 0.001)
"""Seconds: a decode step; each sequence in it."""


@dataclass(frozen=True, slots=True)
class PrefillWork:
    """Prompt tokens to compute at the end of a prompt."""

    computed_tokens: int
    prompt_tokens: int

    @property
    def features(self) -> tuple[float, float, float]:
        computed = self.computed_tokens
        pairs = computed * (self.prompt_tokens - computed / 2)
        return 1.0, computed / 1e3, pairs / 1e6


@dataclass(frozen=True, slots=True)
class LoadWork:
    """Bytes to bring into the device tier."""

    host_bytes: int
    disk_bytes: int

    @property
    def features(self) -> tuple[float, float, float]:
        return 1.0, self.host_bytes / 1e9, self.disk_bytes / 1e9


class CostModel:
    """Seconds of `PrefillWork.features`, of `LoadWork.features`, of (1, batch) between tokens."""

    def __init__(self) -> None:
        self.prefill = LinearModel(_PREFILL_PRIOR)
        self.load = LinearModel(_LOAD_PRIOR)
        self.itl = LinearModel(_ITL_PRIOR)


class WorkerCost:
    """Predictions for one worker: by its own experience, or before it has any by that of all."""

    def __init__(self, fleet: CostModel) -> None:
        self._fleet = fleet
        self._own = CostModel()
        self.prefill = fleet.prefill
        self.load = fleet.load
        self.itl = fleet.itl

    def observe_prefill(self, work: PrefillWork, seconds: float) -> None:
        self.prefill = self._own.prefill
        for model in (self._own, self._fleet):
            model.prefill.observe(work.features, seconds)

    def observe_load(self, work: LoadWork, seconds: float) -> None:
        self.load = self._own.load
        for model in (self._own, self._fleet):
            model.load.observe(work.features, seconds)

    def observe_itl(self, batch: int, seconds: float) -> None:
        self.itl = self._own.itl
        for model in (self._own, self._fleet):
            model.itl.observe((1.0, float(batch)), seconds)

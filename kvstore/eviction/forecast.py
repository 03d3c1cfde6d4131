"""How likely each run is to be read again, learned from the silences of all runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from kvstore.eviction.hazard import Floats, HazardModel, Observations, age_bin, fit, keep_index
from kvstore.eviction.runs import Silence

HISTORY = 20_000
"""Silences remembered; the oldest is forgotten first."""
_REFIT_AFTER = 100
_FIRST_FIT = 200


class Forecast:
    """Sees silences begin (their ends are written into them), and fits a model to them each hundred
    silences, in some milliseconds. Not thread-safe."""

    def __init__(self) -> None:
        self._history: deque[Silence] = deque(maxlen=HISTORY)
        self._unfitted = 0
        self._model: HazardModel | None = None
        self._prospects: dict[tuple[int, ...], Floats] = {}

    def saw(self, silence: Silence) -> None:
        self._history.append(silence)
        self._unfitted += 1

    def refit_if_due(self, now_s: float) -> bool:
        """Whether there is anything to tell the future from."""
        if self._unfitted >= _REFIT_AFTER and len(self._history) >= _FIRST_FIT:
            self._refit(now_s)
        return self._model is not None

    def prospects(self, silences: Sequence[Silence | None], now_s: float) -> Floats:
        """[silences]: expected reads for each second that a run is kept, by the silence it is in;
        none = 0."""
        prospects = np.zeros(len(silences))
        waiting = [(i, silence) for i, silence in enumerate(silences) if silence is not None]
        if waiting:
            table = np.array([self._prospect_by_age(silence.levels) for _, silence in waiting])
            bins = age_bin([now_s - silence.started_s for _, silence in waiting])
            prospects[[i for i, _ in waiting]] = table[np.arange(len(waiting)), bins]
        return prospects

    def _prospect_by_age(self, levels: tuple[int, ...]) -> Floats:
        assert self._model is not None
        prospects = self._prospects.get(levels)
        if prospects is None:
            prospects = self._prospects[levels] = keep_index(self._model.hazard(levels))
        return prospects

    def _refit(self, now_s: float) -> None:
        ends_s = [now_s if seen.ended_s is None else seen.ended_s for seen in self._history]
        observed = Observations(
            np.array([e - seen.started_s for e, seen in zip(ends_s, self._history, strict=True)]),
            np.array([seen.ended_s is not None for seen in self._history]),
            np.array([seen.levels for seen in self._history]),
        )
        if observed.reused.any():
            self._model = fit(observed)
            self._prospects.clear()
        self._unfitted = 0

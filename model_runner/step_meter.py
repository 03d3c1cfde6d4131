"""What an engine counts of its steps, and tells the planner of them."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kvstore.tiers.base import TierKind
from model_runner.load_or_compute import EngineBacklog, LoadPlanner, StepWork
from model_runner.types import Chunk

STEP_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


@dataclass(frozen=True, slots=True)
class StepStatistics:
    """Counts since the engine started."""

    computed_tokens: int = 0
    hit_tokens: Mapping[TierKind, int] = field(default_factory=dict)
    """Prompt tokens that were not computed, by the tier that they came from."""
    steps_by_s: tuple[int, ...] = (0,) * (len(STEP_BUCKETS_S) + 1)
    """Steps that took up to each of STEP_BUCKETS_S seconds and longer than the one before; in the
    end, those that took longer still."""
    steps_s: float = 0.0
    """All steps together."""


class StepMeter:
    """Written by the engine's thread; any may read `statistics`. Cost: microseconds a step."""

    def __init__(self, planner: LoadPlanner | None) -> None:
        self._planner = planner
        self._tokens = 0
        self._hits: Counter[TierKind] = Counter()
        self._steps_by_s = [0] * (len(STEP_BUCKETS_S) + 1)
        self._steps_s = 0.0

    def scheduled(self, chunks: Sequence[Chunk]) -> None:
        """What the coming step computes of what there is to compute."""
        if self._planner is None:
            return
        left = [chunk.request.num_uncomputed for chunk in chunks]
        decoding = left.count(1)
        self._planner.backlog = EngineBacklog(decoding, sum(left) - decoding)

    def computed(self, chunks: Sequence[Chunk], took_s: float) -> None:
        """Call it before the requests' `num_computed` is raised."""
        num_tokens = sum(chunk.num_tokens for chunk in chunks)
        self._tokens += num_tokens
        self._steps_by_s[bisect_left(STEP_BUCKETS_S, took_s)] += 1
        self._steps_s += took_s
        if self._planner is not None and num_tokens > len(chunks):
            self._planner.observe_step(StepWork(num_tokens, _pairs(chunks)), took_s)

    def answered(self, hit_tokens: Mapping[TierKind, int]) -> None:
        """A request has its first token."""
        self._hits.update(hit_tokens)

    def statistics(self) -> StepStatistics:
        return StepStatistics(
            self._tokens, dict(self._hits), tuple(self._steps_by_s), self._steps_s
        )


def _pairs(chunks: Sequence[Chunk]) -> float:
    """Of a new token and one that it attends to."""
    return sum(
        chunk.num_tokens * (chunk.request.num_computed + chunk.num_tokens / 2) for chunk in chunks
    )

"""Measuring in turns: ratios within a round, so that a slow spell of the machine meets both."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from cluster.bench.case import Case


@dataclass(frozen=True, slots=True)
class Turns:
    """What came of each work in each round, by its name."""

    values: Mapping[str, Sequence[float]]

    def median(self, name: str) -> float:
        return median(self.values[name])

    def ratios(self, over: str, under: str) -> list[float]:
        pairs = zip(self.values[over], self.values[under], strict=True)
        return [mine / theirs for mine, theirs in pairs]

    def case(
        self, name: str, unit: str, over: str, under: str, against: str, *, goal: str, note: str
    ) -> Case:
        """`over` held against `under`: medians, and the median ratio of a round."""
        return Case(
            name,
            self.median(over),
            unit,
            self.median(under),
            against,
            note,
            ratios=self.ratios(over, under),
            goal=goal,
        )


def in_turns(works: Mapping[str, Callable[[int], float]], rounds: int) -> Turns:
    """Each work in each of rounds 1 .. `rounds`; whoever calls has warmed them up."""
    values: dict[str, list[float]] = {name: [] for name in works}
    for number in range(1, rounds + 1):
        for name, work in works.items():
            values[name].append(work(number))
    return Turns(values)


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that so many percent of all do not exceed."""
    assert values
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]

"""What a benchmark yields: one figure, and what it is held against."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median


@dataclass(frozen=True, slots=True)
class Case:
    """One figure. `value` and `ceiling` have the same unit and come from the same run."""

    name: str
    value: float
    unit: str
    """"GB/s" (1e9 bytes), "blocks/s", "ms", "bytes", ..."""
    ceiling: float | None = None
    """What it is held against: a limit of this machine, or a peer's figure."""
    against: str = ""
    """What the ceiling is, in words."""
    note: str = ""
    """What a reader must know to trust the figure; empty mostly."""
    ratios: Sequence[float] = ()
    """Value over ceiling in each round, where the two were measured in turns."""
    goal: str = ""
    """What the project wants of it, e.g. "ratio >= 3"."""

    @property
    def ratio(self) -> float | None:
        """The median of `ratios` where there are any."""
        if self.ratios:
            return median(self.ratios)
        return None if self.ceiling is None else self.value / self.ceiling


@dataclass(frozen=True, slots=True)
class Skipped:
    """A figure that cannot be taken here."""

    name: str
    reason: str


@dataclass(frozen=True)
class BenchOptions:
    """What the command line gives; each benchmark takes what it needs."""

    folder: Path
    """For disk tiers and scratch files; on the disk that is to be measured."""
    peers: Mapping[str, Path] = field(default_factory=dict)
    """Name of a peer → what starts it: the Python interpreter of the environment that Mooncake is
    installed in, the server of Redis."""
    trace: Path | None = None
    capacities_tokens: Sequence[int] = ()
    policies: Sequence[str] = ()
    cases: Sequence[str] = ()
    """Names of the only cases that are asked for; empty = all."""

    def wants(self, *names: str) -> bool:
        """Whether any of these cases is asked for."""
        return not self.cases or any(name in self.cases for name in names)


Benchmark = Callable[[BenchOptions], Iterator[Case | Skipped]]
"""Yields each case as soon as it is measured. Raises ConfigurationError for what it cannot use."""

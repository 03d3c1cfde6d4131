"""What a benchmark yields: one figure, and what it is held against."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


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

    @property
    def ratio(self) -> float | None:
        return None if self.ceiling is None else self.value / self.ceiling


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


Benchmark = Callable[[BenchOptions], Iterator[Case]]
"""Yields each case as soon as it is measured. Raises ConfigurationError for what it cannot use."""

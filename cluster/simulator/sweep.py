"""What if: the same workload under every combination of some settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from cluster.demo.trace import TraceRequest
from cluster.simulator.report import Report
from cluster.simulator.scenario import Scenario
from kvstore.core.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Axis:
    """One thing that is varied: `workers=4,8`, or several together: `prefill+decode=4+12,8+8`."""

    name: str
    values: Sequence[str]

    def settings(self, value: str) -> Mapping[str, str]:
        return dict(zip(self.name.split("+"), value.split("+"), strict=True))


@dataclass(frozen=True, slots=True)
class Point:
    values: Mapping[str, str]
    """By name of the axis."""
    report: Report


def parse_axis(text: str) -> Axis:
    """Raises ConfigurationError."""
    name, equals, values = text.partition("=")
    axis = Axis(name.strip(), [value.strip() for value in values.split(",") if value.strip()])
    parts = len(axis.name.split("+"))
    if not equals or not axis.name or not axis.values:
        raise ConfigurationError(f"--what-if {text}: write NAME=VALUE,VALUE, e.g. workers=4,8,16")
    if any(len(value.split("+")) != parts for value in axis.values):
        raise ConfigurationError(f"--what-if {text}: every value needs {parts} parts, as the name")
    return axis


def sweep(
    scenario: Scenario, axes: Sequence[Axis], trace: Sequence[TraceRequest]
) -> Iterator[Point]:
    """Each point as it is done, the last axis varying fastest. No axes: the scenario itself.

    Raises ConfigurationError for any of the points before the first one runs.
    """
    points = []
    for values in product(*(axis.values for axis in axes)):
        settings: dict[str, str] = {}
        for axis, value in zip(axes, values, strict=True):
            settings |= axis.settings(value)
        varied = scenario.varied(settings)
        varied.options()
        points.append((dict(zip((axis.name for axis in axes), values, strict=True)), varied))
    for named, varied in points:
        yield Point(named, varied.run(trace))

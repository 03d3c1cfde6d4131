"""PNG plots of simulations. Needs matplotlib, which is imported when it is used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from cluster.simulator.report import Report
from cluster.simulator.sweep import Point
from kvstore.core.errors import ConfigurationError

_FIGURES: Mapping[str, Callable[[Report], float]] = {
    "good requests (%)": lambda report: 100 * report.good / report.requests,
    "mean TTFT (s)": lambda report: report.ttft_ms.mean / 1e3,
    "tokens not computed (%)": lambda report: 100 * report.hit_ratio,
}


def plot(path: Path, title: str, points: Sequence[Point]) -> None:
    """Bars over the points of a sweep; of a single run, its load over time.

    Raises ConfigurationError without matplotlib.
    """
    pyplot = _pyplot()
    figure = _timeline(pyplot, points[0].report) if len(points) == 1 else _bars(pyplot, points)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def _bars(pyplot: Any, points: Sequence[Point]) -> Any:
    labels = ["\n".join(point.values.values()) for point in points]
    width = max(4.0, 0.55 * len(points) + 2)
    figure, axes = pyplot.subplots(1, len(_FIGURES), figsize=(3 * width, 4), layout="constrained")
    for axis, (name, value) in zip(axes, _FIGURES.items(), strict=True):
        bars = axis.bar(range(len(points)), [value(point.report) for point in points])
        axis.bar_label(bars, fmt="%.3g", fontsize=8)
        axis.set_xticks(range(len(points)), labels, rotation=30 if len(points) > 4 else 0)
        axis.margins(y=0.12)
        axis.set_title(name)
        axis.set_xlabel(" / ".join(points[0].values))
    return figure


def _timeline(pyplot: Any, report: Report) -> Any:
    figure, axes = pyplot.subplots(2, 1, figsize=(9, 6), sharex=True, layout="constrained")
    times = [sample.time_s for sample in report.samples]
    axes[0].plot(times, [sample.waiting_tokens for sample in report.samples])
    axes[0].set_ylabel("prompt tokens waiting")
    axes[1].plot(times, [sample.decoding for sample in report.samples])
    axes[1].set_ylabel("sequences decoding")
    axes[1].set_xlabel("seconds")
    return figure


def _pyplot() -> Any:
    try:
        import_module("matplotlib").use("Agg")
    except ImportError as error:
        raise ConfigurationError(
            "--plot needs matplotlib: pip install 'open-kvstore[plots]'"
        ) from error
    return import_module("matplotlib.pyplot")

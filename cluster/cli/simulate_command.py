"""`kvstore simulate`: a trace through the production conductor, on a virtual clock."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvstore.core.errors import ConfigurationError

if TYPE_CHECKING:
    from rich.table import Table

    from cluster.simulator.scenario import Scenario
    from cluster.simulator.sweep import Point

_FOLDERS = re.compile(r"[^=]*/")
"""Figures are kept with their command; where files lie on this machine is nobody's business."""


def add_to(app: typer.Typer) -> None:
    app.command("simulate", rich_help_panel="Measure")(simulate)


def simulate(
    trace: Annotated[Path, typer.Argument(help="Mooncake format, .jsonl or .jsonl.gz.")],
    profile: Annotated[
        str, typer.Option(help="paper, dynamo-mocker, or a measured .json file.")
    ] = "paper",
    workers: Annotated[int | None, typer.Option(help="Workers that prefill and decode.")] = None,
    prefill: Annotated[int | None, typer.Option(help="Prefill workers, with --decode.")] = None,
    decode: Annotated[int | None, typer.Option(help="Decode workers.")] = None,
    policy: Annotated[str | None, typer.Option(help="Placement policy; default: joint.")] = None,
    admission: Annotated[
        str | None, typer.Option(help="none, late, early or predictive (default).")
    ] = None,
    speedup: Annotated[float | None, typer.Option(help="Replay so many times faster.")] = None,
    slo_ttft_ms: Annotated[float | None, typer.Option(help="Target, first token.")] = None,
    slo_itl_ms: Annotated[
        float | None, typer.Option(help="Target, mean time between tokens of a request.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of failures and of the random policy.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="First requests of the trace only.")] = (
        None
    ),
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Anything else, see docs/simulator.md, e.g. host_blocks=50000, mtbf_s=600,"
            " workload=no-reuse. Repeatable.",
        ),
    ] = None,
    what_if: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=V,V,...",
            help="Run once for each value; repeated: for each combination. Several at a time:"
            " prefill+decode=4+12,8+8.",
        ),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw a PNG.")] = None,
    save: Annotated[Path | None, typer.Option(help="Also write the figures to this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of tables.")] = False,
) -> None:
    """Replay a trace through the scheduler on simulated workers.

    Example: [bold]kvstore simulate trace.jsonl.gz --workers 8 --what-if policy=joint,random[/]
    """
    from cluster.demo.trace import read_trace
    from cluster.simulator.profiles import load_profile
    from cluster.simulator.scenario import Scenario
    from cluster.simulator.sweep import parse_axis, sweep

    axes = [parse_axis(text) for text in what_if or []]
    named = {
        "workers": workers,
        "prefill": prefill,
        "decode": decode,
        "policy": policy,
        "admission": admission,
        "speedup": speedup,
        "slo_ttft_ms": slo_ttft_ms,
        "slo_itl_ms": slo_itl_ms,
        "seed": seed,
    }
    given = {name: value for name, value in named.items() if value is not None}
    scenario = Scenario(load_profile(profile)).varied(given | _assignments(settings or []))
    points = []
    for point in sweep(scenario, axes, read_trace(trace, limit or sys.maxsize)):
        points.append(point)
        if as_json and axes:
            typer.echo(json.dumps(_as_json(point)))
    _show(points, scenario, as_json=as_json)
    if save is not None:
        _save(save, points)
    if plot is not None:
        from cluster.simulator.plots import plot as draw

        draw(plot, f"profile {scenario.profile.name}, {scenario.title}", points)


def _show(points: list[Point], scenario: Scenario, *, as_json: bool) -> None:
    """The last line of JSON is one object: of a single run its figures, of a sweep all of them."""
    if not as_json:
        from rich.console import Console

        Console().print(_as_table(points, scenario))
    elif not points[0].values:
        typer.echo(json.dumps(points[0].report.as_json()))
    else:
        typer.echo(json.dumps({"points": [_as_json(point) for point in points]}))


def _as_json(point: Point) -> dict[str, Any]:
    return {**({"what_if": dict(point.values)} if point.values else {}), **point.report.as_json()}


def _as_table(points: list[Point], scenario: Scenario) -> Table:
    from rich.table import Table

    table = Table(title=f"kvstore simulate, profile {scenario.profile.name} (times in ms)")
    for name in points[0].values:
        table.add_column(name)
    for name in ("good", "rejected", "hit", "TTFT", "p90", "p99", "ITL"):
        table.add_column(name, justify="right")
    for point in points:
        report = point.report
        ttft = report.ttft_ms
        table.add_row(
            *point.values.values(),
            f"{report.good:,}/{report.requests:,}",
            f"{report.rejected:,}",
            f"{report.hit_ratio:.1%}",
            *(f"{value:,.0f}" for value in (ttft.mean, ttft.p90, ttft.p99)),
            f"{report.itl_ms.mean:.1f}",
        )
    return table


def _save(path: Path, points: list[Point]) -> None:
    content = {"command": _command(), "figures": [_as_json(point) for point in points]}
    path.write_text(json.dumps(content, indent=1) + "\n", "utf-8")


def _command() -> str:
    arguments = [_FOLDERS.sub("", argument) for argument in sys.argv[1:]]
    return shlex.join(["kvstore", *arguments])


def _assignments(texts: list[str]) -> dict[str, str]:
    values = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigurationError(f"--set {text}: write NAME=VALUE, e.g. host_blocks=50000")
        values[name.strip()] = value.strip()
    return values

"""`kvstore bench`: figures of this machine, each beside what it is held against."""

from __future__ import annotations

import json
import re
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.bench.registry import BENCHMARKS
from kvstore.core.errors import ConfigurationError

if TYPE_CHECKING:
    from cluster.bench.case import BenchOptions, Case, Skipped

_FOLDERS = re.compile(r"[^=]*/")
"""The figures are kept with their command; where files lie on this machine is nobody's business."""


def add_to(app: typer.Typer) -> None:
    app.command("bench", rich_help_panel="Measure")(bench)


def bench(
    name: Annotated[str, typer.Argument(help=f"Which: {', '.join(BENCHMARKS)}.")],
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line instead of a table.")
    ] = False,
    peer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PATH",
            help="Measure a peer beside it. Repeatable. mooncake=PYTHON: the interpreter of the "
            "environment that Mooncake is installed in; vllm=PYTHON and dynamo=PYTHON likewise. "
            "redis=SERVER: a "
            "redis-server, of which a private one is started.",
        ),
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(help="Workload in the Mooncake format, .jsonl or .jsonl.gz.")
    ] = None,
    capacity_tokens: Annotated[
        str, typer.Option(help="Cache sizes in tokens, separated by commas.")
    ] = "",
    policy: Annotated[str, typer.Option(help="Policies, separated by commas.")] = "",
    case: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only this case of the benchmark. Repeatable."),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Folder on the disk to be measured; default: temporary.")
    ] = None,
    save: Annotated[Path | None, typer.Option(help="Also write the figures to this file.")] = None,
) -> None:
    """Measure the store beside the limits of this machine, in the same run.

    Example: [bold]kvstore bench evict --trace trace.jsonl.gz --policy lru,adaptive[/]
    """
    from cluster.bench.case import BenchOptions

    if name not in BENCHMARKS:
        raise ConfigurationError(f"bench {name}: accepted are {', '.join(BENCHMARKS)}")
    with tempfile.TemporaryDirectory(dir=folder, prefix="kvstore-bench-") as scratch:
        options = BenchOptions(
            folder=Path(scratch),
            peers=_peers(peer or []),
            trace=trace,
            capacities_tokens=_numbers(capacity_tokens),
            policies=[part.strip() for part in policy.split(",") if part.strip()],
            cases=case or [],
        )
        cases = _run(name, options, as_json=as_json)
    if save is not None:
        from cluster.bench.report import save as save_cases

        arguments = [_FOLDERS.sub("", argument) for argument in sys.argv[1:]]
        save_cases(save, shlex.join(["kvstore", *arguments]), cases)


def _run(name: str, options: BenchOptions, *, as_json: bool) -> list[Case | Skipped]:
    from rich.console import Console

    from cluster.bench import report
    from cluster.bench.registry import load_benchmarks

    cases: list[Case | Skipped] = []
    with Console(stderr=True).status(f"bench {name}") as status:
        for benchmark in load_benchmarks(name):
            for case in benchmark(options):
                if not options.wants(case.name):
                    continue
                cases.append(case)
                status.update(f"bench {name}: {case.name}")
                if as_json:
                    typer.echo(json.dumps(report.as_json(case)))
    _check_all_there(name, options.cases, cases)
    if not as_json:
        Console().print(report.as_table(name, cases))
    return cases


def _check_all_there(name: str, asked: Sequence[str], cases: Sequence[Case | Skipped]) -> None:
    missing = set(asked) - {case.name for case in cases}
    if missing:
        raise ConfigurationError(
            f"bench {name} --case {', '.join(sorted(missing))}: it has no such case, or none with "
            "these options"
        )


def _peers(assignments: list[str]) -> dict[str, Path]:
    peers = {}
    for assignment in assignments:
        name, equals, path = assignment.partition("=")
        if not equals or not Path(path).is_file():
            raise ConfigurationError(
                f"--peer {assignment}: write mooncake=PYTHON, the interpreter of the environment "
                "that Mooncake is installed in, vllm=PYTHON or dynamo=PYTHON likewise, or "
                "redis=SERVER, the path of a redis-server"
            )
        peers[name] = Path(path)
    return peers


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise ConfigurationError(
            f"--capacity-tokens {text}: write whole numbers, e.g. 3000000,10000000"
        ) from error

"""How cases are shown and kept."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.table import Table

from cluster.bench.case import Case, Skipped

_PACKAGES = (
    "open-kvstore", "numpy", "torch", "transformers", "pyzmq", "grpcio", "redis", "awscrt",
)  # fmt: skip


def as_json(case: Case | Skipped) -> dict[str, Any]:
    """`case`, `value`, `unit`, and where there is one `ceiling`, `ratio` and what it is; where it
    was measured in turns, how far the ratio of a round was from the median. Or why there is none.
    """
    if isinstance(case, Skipped):
        return {"case": case.name, "skipped": case.reason}
    shown: dict[str, Any] = {"case": case.name, "value": _short(case.value), "unit": case.unit}
    if case.ceiling is not None and case.ratio is not None:
        shown |= {"ceiling": _short(case.ceiling), "ratio": _short(case.ratio)}
        shown["against"] = case.against
    if case.ratios:
        shown["ratio_spread"] = [_short(min(case.ratios)), _short(max(case.ratios))]
        shown["rounds"] = len(case.ratios)
    if case.goal:
        shown["goal"] = case.goal
    if case.note:
        shown["note"] = case.note
    return shown


def as_table(name: str, cases: Sequence[Case | Skipped]) -> Table:
    table = Table(title=f"kvstore bench {name}")
    for column, justify in (("case", "left"), ("value", "right"), ("", "left")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for column, justify in (("held against", "left"), ("", "right"), ("ratio", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    has_goals = any(isinstance(case, Case) and case.goal for case in cases)
    if has_goals:
        table.add_column("goal")
    for case in cases:
        row = _row(case)
        table.add_row(*(row if has_goals else row[:-1]))
    return table


def _row(case: Case | Skipped) -> list[str]:
    if isinstance(case, Skipped):
        return [case.name, "skipped", "", case.reason, "", "", ""]
    ceiling = "" if case.ceiling is None else f"{_short(case.ceiling):,}"
    ratio = "" if case.ratio is None else f"{case.ratio:.3g}"
    if case.ratios:
        ratio += f" ({min(case.ratios):.3g} - {max(case.ratios):.3g})"
    value = f"{_short(case.value):,}"
    return [case.name, value, case.unit, case.against, ceiling, ratio, case.goal]


def save(path: Path, command: str, cases: Sequence[Case | Skipped]) -> None:
    """Write the cases with what they were made by, and on."""
    content = {
        "command": command,
        "versions": {"python": platform.python_version(), **{p: version(p) for p in _PACKAGES}},
        "machine": {
            "cpu_cores": os.cpu_count(),
            "cpu": _cpu_name(),
            "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30),
        },
        "figures": [as_json(case) for case in cases],
    }
    path.write_text(json.dumps(content, indent=1) + "\n", "utf-8")


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _short(value: float) -> float:
    """Four significant digits."""
    short = float(f"{value:.4g}")
    return int(short) if short.is_integer() and abs(short) >= 1000 else short

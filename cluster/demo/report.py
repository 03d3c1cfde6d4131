"""Outcomes as tables for people and one JSON line for programs. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cluster.demo.client import TIERS, Answer
from cluster.demo.workload import DemoRequest


@dataclass(frozen=True)
class Outcome:
    """One request: answered with the cache, and once more without it. `error` says what failed."""

    request: DemoRequest
    answer: Answer | None = None
    reference: Answer | None = None
    error: str = ""

    @property
    def failed(self) -> bool:
        return bool(self.error) or self.answer is None or self.reference is None

    @property
    def identical(self) -> bool:
        """A failed request has not shown that its answer is the same."""
        if self.answer is None or self.reference is None:
            return False
        return self.answer.says_the_same_as(self.reference)


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The JSON object of the last line. Times are null where nothing was answered."""
    answers = [o.answer for o in outcomes if o.answer is not None]
    return {
        "requests": len(outcomes),
        "failed": sum(o.failed for o in outcomes),
        "identical": bool(outcomes) and all(o.identical for o in outcomes),
        "hit_tokens": {tier: sum(a.hit_tokens[tier] for a in answers) for tier in TIERS},
        "prompt_tokens": sum(a.prompt_tokens for a in answers),
        "ttft_ms": {
            "cold_p50": _ttft_p50(_of(outcomes, "cold")),
            "warm_p50": _ttft_p50(_of(outcomes, "warm host", "warm disk")),
        },
    }


def tables(outcomes: Sequence[Outcome]) -> RenderableType:
    errors = [Text(f"{o.request.name}: {o.error}", "red") for o in outcomes if o.error]
    return Group(_requests_table(outcomes), _comparison_table(outcomes), *errors)


def _requests_table(outcomes: Sequence[Outcome]) -> Table:
    table = Table(title="Requests", box=SIMPLE, pad_edge=False)
    table.add_column("request", no_wrap=True)
    for name in ("prompt", *TIERS, "TTFT ms", "ITL ms"):
        table.add_column(name, justify="right")
    table.add_column("same", justify="center")
    for outcome in outcomes:
        table.add_row(outcome.request.name, *_figures(outcome.answer), _verdict(outcome))
    return table


def _figures(answer: Answer | None) -> list[str]:
    if answer is None:
        return ["-"] * (len(TIERS) + 3)
    hits = [str(answer.hit_tokens[tier] or "") for tier in TIERS]
    itl = "" if answer.itl_ms is None else f"{answer.itl_ms:.1f}"
    return [str(answer.prompt_tokens), *hits, f"{answer.ttft_ms:.1f}", itl]


def _verdict(outcome: Outcome) -> str:
    if outcome.failed:
        return "[red]failed[/]"
    return "[green]✓[/]" if outcome.identical else "[red]✗ differs[/]"


def _comparison_table(outcomes: Sequence[Outcome]) -> Table:
    table = Table(title="The same prompts, cold and warm", box=SIMPLE)
    for name in ("", "hit tokens", "of prompt", "TTFT p50 ms", "faster"):
        table.add_column(name, justify="right" if name else "left")
    cold = _ttft_p50(_of(outcomes, "cold"))
    for phase in ("cold", "warm host", "warm disk"):
        answers = _of(outcomes, phase)
        ttft = _ttft_p50(answers)
        hits = sum(sum(a.hit_tokens.values()) for a in answers)
        share = hits / max(1, sum(a.prompt_tokens for a in answers))
        faster = "" if not cold or not ttft else f"{cold / ttft:.1f} x"
        table.add_row(phase, str(hits), f"{share:.0%}", "-" if ttft is None else str(ttft), faster)
    return table


def _of(outcomes: Sequence[Outcome], *phases: str) -> list[Answer]:
    return [o.answer for o in outcomes if o.answer is not None and o.request.phase in phases]


def _ttft_p50(answers: Sequence[Answer]) -> float | None:
    return round(median(a.ttft_ms for a in answers), 2) if answers else None

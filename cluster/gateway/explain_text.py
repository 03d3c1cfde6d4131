"""An explanation, for people to read. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Told = Mapping[str, Any]
"""What `explain.explanation` gives, or a part of it."""


def as_text(told: Told) -> str:
    lines = [
        f"{told['id']} (request {told['request_id']}) of tenant {told['tenant']}, "
        f"model {told['model']}"
    ]
    if not told["generations"]:
        lines.append("  still going on: what is known of it is told when it is over")
    for generation in told["generations"]:
        lines += ["", *_lines(generation)]
    return "\n".join(lines) + "\n"


def _lines(told: Told) -> Iterator[str]:
    yield f"{told['id']}: {told['prompt_tokens']} prompt, {told['output_tokens']} answer tokens"
    if told["decision"] is None:
        yield "  no route was found"
    else:
        yield from _decision(told["decision"], with_table=told["conductor"] is None)
    if told["conductor"] is not None:
        yield from _conductor(told["conductor"])
    worked = told["worked"]
    yield f"  worked: prefill {worked['prefill'] or '-'}, decode {worked['decode'] or '-'}"
    yield "  observed: " + _figures(told["observed"])
    yield "  hit tokens: " + _counts(told["hit_tokens"])
    yield "  missed blocks: " + _counts(told["missed_blocks"])
    if told["error"] is not None:
        yield f"  error: {told['error']}"


def _decision(told: Told, *, with_table: bool) -> Iterator[str]:
    prefill = told["prefill"] or "by the decode worker"
    yield f"  decided: prefill {prefill}, decode {told['decode']}"
    yield "  predicted: " + _figures(told["predicted"])
    if with_table:
        yield from _table("candidates", told["candidates"], told["chosen"]["member_id"])


def _conductor(told: Told) -> Iterator[str]:
    yield f"  policy: {told['policy']}, {told['age_s']:.3g} s ago"
    if told["refused"] is not None:
        yield f"  refused: {told['refused']}"
    yield from _table("prefill workers", told["prefills"], told["prefill"])
    alone = told["decode"] if told["prefill"] is None else None
    yield from _table("decode workers, were they to prefill", told["alone"], alone)
    yield from _table("decode workers", told["decodes"], told["decode"])


def _table(title: str, candidates: Sequence[Told], chosen: str | None) -> Iterator[str]:
    """A star before the chosen one."""
    if not candidates:
        return
    columns = list(candidates[0])
    rows = [columns, *([_cell(candidate[name]) for name in columns] for candidate in candidates)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    yield f"  {title}:"
    for name, *values in rows:
        cells = [value.rjust(width) for value, width in zip(values, widths[1:], strict=True)]
        yield f"  {'*' if name == chosen else ' '} " + "  ".join([name.ljust(widths[0]), *cells])


def _figures(figures: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in figures.items())


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items() if count) or "none"


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

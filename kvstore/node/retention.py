"""How long blocks should stay, for ranges of the keys of a call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kvstore.core.ids import BlockKey


@dataclass(frozen=True, slots=True)
class RetentionRange:
    """For the keys [first, last) of a call."""

    first: int
    last: int
    priority: int
    """0-100; lower goes first, blocks that nothing was said of have 35."""
    duration_s: float | None
    """Then the priority is 35 again; None = until evicted."""


def ranges_by_key(
    keys: Sequence[BlockKey], ranges: Sequence[RetentionRange]
) -> dict[BlockKey, RetentionRange]:
    """What is asked of each key that something is asked of."""
    return {key: part for part in ranges for key in keys[part.first : part.last]}


def keys_by_range(
    keys: Sequence[BlockKey], asked: Mapping[BlockKey, RetentionRange]
) -> dict[RetentionRange, list[BlockKey]]:
    """Those of `keys` that something is asked of, together where it is the same."""
    groups: dict[RetentionRange, list[BlockKey]] = {}
    for key in keys:
        if part := asked.get(key):
            groups.setdefault(part, []).append(key)
    return groups

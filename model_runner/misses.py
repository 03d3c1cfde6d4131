"""Why blocks of a prompt were computed: each for one reason. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING

from kvstore.tiers.base import MissReason

if TYPE_CHECKING:
    from model_runner.types import Request


class Miss(StrEnum):
    """The first ones are the node's, see `MissReason`."""

    NEVER_STORED = "never_stored"
    EVICTED = "evicted"
    PENDING = "pending"
    CORRUPT = "corrupt"
    LATE = "late"
    NO_SPACE = "no_space"
    FAILED = "failed"
    CHEAPER = "cheaper_to_compute"
    """Loading would have taken longer."""
    BEHIND = "behind_a_miss"
    """Of no use without a block before it, and not asked for."""
    NO_STORE = "no_store"
    """No store was there to ask."""
    BYPASSED = "bypassed"
    """The request reads no cache, or wants what only computing gives."""
    TAIL = "tail"
    """Holds the last token, which is always computed: the answer comes from it."""


def missed_blocks(places: range, told: Mapping[int, MissReason], cheaper: range) -> list[Miss]:
    """Why each of the wanted blocks at `places` was not loaded.

    `told`: what the node said, by place. `cheaper`: were there, and left there.
    """
    return [
        Miss[told[place].name]
        if place in told
        else (Miss.CHEAPER if place in cheaper else Miss.BEHIND)
        for place in places
    ]


def prompt_misses(request: Request, block_size_tokens: int) -> dict[Miss, int]:
    """Of the full blocks of its prompt that are no hits, by reason; called with its first token."""
    size = block_size_tokens
    num_hits = sum(request.hit_tokens.values()) // size
    missing = request.num_prompt_tokens // size - num_hits
    reads = not request.bypass_cache and request.sampling.prompt_logprobs is None
    if not reads:
        return {Miss.BYPASSED: missing} if missing else {}
    reasons = Counter(request.missed_blocks[:missing])
    rest = missing - reasons.total()
    if rest > 0 and request.num_prompt_tokens % size == 0:
        reasons[Miss.TAIL] += 1
        rest -= 1
    if rest > 0:
        reasons[Miss.NO_STORE] += rest
    return dict(reasons)

"""What is the same for all workers when one request is placed."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from cluster.conductor.types import Request
from kvstore.core.layout import KVLayout


@dataclass(frozen=True, slots=True)
class Context:
    request: Request
    layout: KVLayout
    now_s: float
    answer_tokens: float
    """Expected length of the answer."""
    across_zones: float
    """How many times longer a transfer between zones takes than one inside."""

    @property
    def blocks_needed(self) -> int:
        """On the device of the decode worker, at the end: of the expected length, for `max_tokens`
        is rarely what an answer takes."""
        tokens = self.request.prompt_tokens + ceil(self.answer_tokens)
        return -(-tokens // self.layout.block_size_tokens)

    @property
    def tokens_held(self) -> float:
        """On average, while it decodes."""
        return self.request.prompt_tokens + self.answer_tokens / 2

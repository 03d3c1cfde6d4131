"""What it would take each worker to compute a prompt, all workers at once.

```
 prompt    |--- device ---|-- host --|-- disk --|-- another node has it --|------ nobody ------|
 own prefix of a worker   ^          ^          ^                         ^
 computes from here on, or from here, or here, or here: whatever is ready first
```
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cluster.conductor.columns import STALL_MEMORY_S, Field, Flags, Floats
from cluster.conductor.context import Context
from cluster.conductor.types import Candidate, Member, TierTokens

_LOADS = ((1, Field.LOAD_HOST_BYTE_S), (2, Field.LOAD_DISK_BYTE_S))


class Prefilling:
    """Columns with a number for each of `members`; computed when they are first asked for."""

    def __init__(
        self,
        context: Context,
        members: list[Member],
        columns: Floats,
        tokens: Floats,
        can_pull: Flags,
        on_nodes: int,
        link_s: Floats,
    ) -> None:
        """`columns`: of `Columns.values`; `tokens`: of the own prefix on device, host and disk, a
        row each; `on_nodes`: prompt tokens that some node has, for those who `can_pull`; `link_s`:
        until the network link of each is free."""
        self.members = members
        self.columns = columns
        self.tokens = tokens
        self.can_pull = can_pull
        self.on_nodes = on_nodes
        self._context = context
        self._link_s = link_s

    def __len__(self) -> int:
        return len(self.members)

    def part(self, rows: slice) -> Prefilling:
        """Some of the workers; what policies ask for first is computed for all in one go."""
        part = Prefilling(
            self._context,
            self.members[rows],
            self.columns[:, rows],
            self.tokens[:, rows],
            self.can_pull[rows],
            self.on_nodes,
            self._link_s[rows],
        )
        part.queue_s = self.queue_s[rows]
        part.local_ready_s = self.local_ready_s[rows]
        part.ready_s = self.ready_s[rows]
        part.stall_s = self.stall_s[rows]
        return part

    @cached_property
    def own_tokens(self) -> Floats:
        """Of the prompt, that each has on its device or its node."""
        tokens: Floats = self.tokens.sum(axis=0)
        return tokens

    @cached_property
    def queue_s(self) -> Floats:
        """Until what was routed there is computed."""
        queue_s: Floats = np.maximum(self.columns[Field.BUSY_UNTIL_S] - self._context.now_s, 0.0)
        return queue_s

    @cached_property
    def ready_s(self) -> Floats:
        """From the end of the queue to the first token: loading and computing."""
        ready_s = self.local_ready_s
        return ready_s if self._pulled is None else np.minimum(ready_s, self._pulled.total_s)

    @cached_property
    def ttft_s(self) -> Floats:
        """Time to the first token."""
        seconds: Floats = self.queue_s + self.ready_s
        return seconds

    @cached_property
    def local_ready_s(self) -> Floats:
        """As `ready_s`, with what each has itself."""
        best = self._own[0].total_s
        for source in self._own[1:]:
            best = np.minimum(best, source.total_s)
        return best

    @cached_property
    def local_ttft_s(self) -> Floats:
        """As `ttft_s`, with what each has itself."""
        seconds: Floats = self.queue_s + self.local_ready_s
        return seconds

    @cached_property
    def pulled_ttft_s(self) -> Floats:
        """As `ttft_s`, with all that another node can send, whether or not that is sooner."""
        seconds: Floats = self.queue_s + (self._pulled or self._own[-1]).total_s
        return seconds

    @cached_property
    def duplicated_s(self) -> Floats:
        """To compute what others have of the prompt and the worker itself has not: work that would
        be worth nothing, were the request placed with them."""
        most = max(float(self.own_tokens.max(initial=0)), float(self.on_nodes))
        seconds: Floats = self.columns[Field.PREFILL_TOKEN_S] * (most - self.own_tokens)
        return seconds

    @cached_property
    def routed(self) -> Floats:
        """Prompts given to each so far: of two equal ones, the one given less is less known."""
        counts: Floats = self.columns[Field.ROUTED]
        return counts

    @cached_property
    def stall_s(self) -> Floats:
        """Seconds of prefill given to each lately, faded."""
        age_s = self.columns[Field.ROUTED_AT_S] - self._context.now_s
        seconds: Floats = self.columns[Field.STALL_S] * np.exp(age_s * (1 / STALL_MEMORY_S))
        return seconds

    def pull_s(self, tokens: Floats) -> Floats:
        """To have the KV of so many tokens sent by another node, behind what is on the way."""
        c, token_bytes = self.columns, self._context.layout.token_bytes
        seconds = c[Field.PULL_S] + c[Field.PULL_BYTE_S] * (tokens * token_bytes) + self._link_s
        return np.where(tokens > 0, seconds, 0.0)

    def pulled_tokens(self, row: int) -> float:
        """That this worker would pull, if that is sooner than computing them."""
        if self._pulled is None or self._pulled.total_s[row] > self.local_ready_s[row]:
            return 0.0
        return float(self._pulled.cached[row] - self.own_tokens[row])

    def candidate(self, row: int) -> Candidate:
        """The terms of one worker."""
        sources = [*self._own, *([self._pulled] if self._pulled else [])]
        best = min(sources, key=lambda source: float(source.total_s[row]))
        device, host, disk = self.tokens[:, row].astype(int).tolist()
        remote = max(0, self.on_nodes - device - host - disk) if self.can_pull[row] else 0
        return Candidate(
            member=self.members[row],
            queue_s=float(self.queue_s[row]),
            load_s=float(best.load_s[row]),
            pull_s=float(best.pull_s[row]) if best.pull_s is not None else 0.0,
            prefill_s=float(best.prefill_s[row]),
            tokens=TierTokens(device, host, disk, remote),
            cached_tokens=int(best.cached[row]),
            routed=int(self.routed[row]),
        )

    @cached_property
    def _own(self) -> list[_Source]:
        """Use what is on the device; the host's blocks, too; those of the disk, too."""
        c, token_bytes = self.columns, self._context.layout.token_bytes
        cached, load_s = self.tokens[0], c[Field.LOAD_S]
        sources = [_Source(cached, load_s, None, self._compute_s(cached))]
        for tier, field in _LOADS:
            tokens = self.tokens[tier]
            if tokens.any():
                cached = cached + tokens
                load_s = load_s + c[field] * (tokens * token_bytes)
                sources.append(_Source(cached, load_s, None, self._compute_s(cached)))
        return sources

    @cached_property
    def _pulled(self) -> _Source | None:
        """Use all of that, and what another node has beyond it."""
        if not self.on_nodes or not self.can_pull.any():
            return None
        own = self.own_tokens
        cached = np.maximum(own, self.can_pull * float(self.on_nodes))
        pull_s = self.pull_s(cached - own)
        return _Source(cached, self._own[-1].load_s, pull_s, self._compute_s(cached))

    def _compute_s(self, cached: Floats) -> Floats:
        """To compute the rest of the prompt: with n tokens of it, seconds = a + n (b + n c).

        Of a prompt wholly cached the last token is computed again: its logits are needed.
        """
        computed = np.maximum(self._context.request.prompt_tokens - cached, 1.0)
        per_token, per_square = self._polynomial
        seconds: Floats = self.columns[Field.PREFILL_S] + computed * (
            per_token + computed * per_square
        )
        return seconds

    @cached_property
    def _polynomial(self) -> tuple[Floats, Floats]:
        """n tokens at the end of a prompt of p make n (p - n/2) pairs with those they attend to."""
        c, prompt_tokens = self.columns, self._context.request.prompt_tokens
        per_pair = c[Field.PREFILL_PAIR_S]
        return c[Field.PREFILL_TOKEN_S] + per_pair * prompt_tokens, per_pair * -0.5


@dataclass(frozen=True)
class _Source:
    """One way to get at the KV of the prompt's beginning; the rest is computed."""

    cached: Floats
    """Tokens."""
    load_s: Floats
    pull_s: Floats | None
    prefill_s: Floats

    @cached_property
    def total_s(self) -> Floats:
        local_s: Floats = self.load_s + self.prefill_s
        return local_s if self.pull_s is None else local_s + self.pull_s

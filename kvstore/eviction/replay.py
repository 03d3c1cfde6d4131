"""Token hit rate of a policy on a recorded workload. Pure; the clock of the policies is the
trace's."""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from kvstore.core.ports import Clock
from kvstore.eviction.base import EvictionPolicy

MakePolicy = Callable[[Clock], EvictionPolicy[int]]

_NEVER = 1 << 62


@dataclass(frozen=True, slots=True)
class Access:
    """One request: when it came, how long its prompt is, and the ids of its blocks, in prefix
    order."""

    time_s: float
    prompt_tokens: int
    blocks: Sequence[int]


@dataclass(frozen=True, slots=True)
class HitRate:
    hit_tokens: int
    prompt_tokens: int

    @property
    def ratio(self) -> float:
        return self.hit_tokens / self.prompt_tokens if self.prompt_tokens else 0.0


def replay(
    accesses: Sequence[Access],
    make: MakePolicy,
    *,
    capacity_blocks: int,
    block_tokens: int,
) -> HitRate:
    """Serve `accesses` in order from a cache of `capacity_blocks`; a hit is a block of the leading
    run present."""
    now_s = 0.0
    policy = make(lambda: now_s)
    resident: set[int] = set()
    hit_tokens = 0
    for access in accesses:
        now_s = access.time_s
        hits = leading_hits(access.blocks, resident)
        hit_tokens += min(hits * block_tokens, access.prompt_tokens)
        new = [block for block in access.blocks if block not in resident]
        policy.touch(access.blocks)
        policy.insert(new)
        resident.update(new)
        if len(resident) > capacity_blocks:
            resident.difference_update(
                policy.victims(len(resident) - capacity_blocks, lambda block: True)
            )
    return HitRate(hit_tokens, sum(access.prompt_tokens for access in accesses))


def leading_hits(blocks: Sequence[int], resident: set[int]) -> int:
    for position, block in enumerate(blocks):
        if block not in resident:
            return position
    return len(blocks)


class Belady:
    """`EvictionPolicy` that knows the future: evicts what is used again last, and of equals the
    deepest. That is prefix-closed, for whoever uses a block uses all before it. A bound, not a
    policy.

    `touch` must be called once for each of `accesses`, in order.
    """

    def __init__(self, accesses: Sequence[Access]) -> None:
        self._uses: dict[int, deque[int]] = defaultdict(deque)
        for i, access in enumerate(accesses):
            for block in access.blocks:
                self._uses[block].append(i)
        self._now = -1
        self._resident: dict[int, int] = {}
        """When each resident block is used next."""
        self._depth: dict[int, int] = {}
        self._heap: list[tuple[int, int, int]] = []

    def touch(self, keys: Iterable[int]) -> None:
        self._now += 1
        for depth, block in enumerate(keys):
            self._depth[block] = depth
            if block in self._resident:
                self._schedule(block)

    def insert(self, keys: Iterable[int]) -> None:
        for block in keys:
            self._schedule(block)

    def remove(self, keys: Iterable[int]) -> None:
        for block in keys:
            self._resident.pop(block, None)

    def victims(self, count: int, evictable: Callable[[int], bool]) -> list[int]:
        chosen: list[int] = []
        passed_over: list[tuple[int, int, int]] = []
        while len(chosen) < count and self._heap:
            entry = heapq.heappop(self._heap)
            use, _, block = entry
            if self._resident.get(block) != -use:
                continue
            if evictable(block):
                del self._resident[block]
                chosen.append(block)
            else:
                passed_over.append(entry)
        for entry in passed_over:
            heapq.heappush(self._heap, entry)
        return chosen

    def __len__(self) -> int:
        return len(self._resident)

    def _schedule(self, block: int) -> None:
        uses = self._uses[block]
        while uses and uses[0] <= self._now:
            uses.popleft()
        self._resident[block] = uses[0] if uses else _NEVER
        heapq.heappush(self._heap, (-self._resident[block], -self._depth[block], block))

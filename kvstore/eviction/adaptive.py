"""Follows whichever of several policies has regretted least of late.

Every candidate is told of everything, so that each has an order of the same resident keys. One of
them leads and chooses the victims, the others get a small share. A victim that is asked for again
while it would still have been remembered is a regret of the one who chose it. Regrets over choices,
both fading, is the rate that decides who leads. The idea of learning from ghosts of competing
experts is LeCaR's (Vietri et al., HotStorage'18).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Generic, TypeVar

from kvstore.eviction.base import EvictionPolicy

K = TypeVar("K", bound=Hashable)

_EXPLORE_EVERY = 8
"""Of so many calls, one goes to a candidate that does not lead."""
_FADE_AFTER = 8192
"""Choices of a candidate after which its past counts half."""
_CHOICES_PRIOR = 1024
_LEAD = 0.8
"""A challenger takes over only when its rate of regret is below this share of the leader's."""


class _Candidate(Generic[K]):
    def __init__(self, policy: EvictionPolicy[K]) -> None:
        self.policy = policy
        self.ghosts: OrderedDict[K, None] = OrderedDict()
        self.choices = 0.0
        self.regrets = 0.0

    def chose(self, keys: Sequence[K], ghosts_max: int) -> None:
        self.choices += len(keys)
        self.ghosts.update(dict.fromkeys(keys))
        while len(self.ghosts) > ghosts_max:
            self.ghosts.popitem(last=False)
        if self.choices > _FADE_AFTER:
            self.choices /= 2
            self.regrets /= 2

    def regret_rate(self, mean: float) -> float:
        return (self.regrets + mean * _CHOICES_PRIOR) / (self.choices + _CHOICES_PRIOR)


class Adaptive(Generic[K]):
    """`EvictionPolicy` over candidates, the first of which leads at the start. Not thread-safe."""

    def __init__(self, policies: Sequence[EvictionPolicy[K]]) -> None:
        assert policies
        self._candidates = [_Candidate(policy) for policy in policies]
        self._leader = self._candidates[0]
        self._calls = 0

    def touch(self, keys: Iterable[K]) -> None:
        chain = list(keys)
        for candidate in self._candidates:
            candidate.policy.touch(chain)

    def insert(self, keys: Iterable[K]) -> None:
        batch = list(keys)
        for candidate in self._candidates:
            if candidate.ghosts:
                for key in batch:
                    if candidate.ghosts.pop(key, 0) is None:
                        candidate.regrets += 1
            candidate.policy.insert(batch)

    def remove(self, keys: Iterable[K]) -> None:
        batch = list(keys)
        for candidate in self._candidates:
            candidate.policy.remove(batch)

    def victims(self, count: int, evictable: Callable[[K], bool]) -> list[K]:
        """See `EvictionPolicy.victims`."""
        self._elect()
        chooser = self._next_chooser()
        chosen = chooser.policy.victims(count, evictable)
        chooser.chose(chosen, ghosts_max=len(self) + len(chosen))
        for candidate in self._candidates:
            if candidate is not chooser:
                candidate.policy.remove(chosen)
        return chosen

    def __len__(self) -> int:
        return len(self._leader.policy)

    def __repr__(self) -> str:
        return f"Adaptive(led by {self._leader.policy!r})"

    def _next_chooser(self) -> _Candidate[K]:
        self._calls += 1
        turn, due = divmod(self._calls, _EXPLORE_EVERY)
        return self._candidates[turn % len(self._candidates)] if due == 0 else self._leader

    def _elect(self) -> None:
        choices = sum(candidate.choices for candidate in self._candidates)
        regrets = sum(candidate.regrets for candidate in self._candidates)
        mean = regrets / choices if choices else 0.0
        best = min(self._candidates, key=lambda candidate: candidate.regret_rate(mean))
        if best.regret_rate(mean) < _LEAD * self._leader.regret_rate(mean):
            self._leader = best

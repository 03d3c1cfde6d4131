"""Follows whichever of several policies would do best on what is being asked for.

Each candidate runs a *shadow*: a cache without bytes, over a sample of the keys and as much smaller
as the sample is, which counts the hits that it would have had. The candidate whose shadow had the
most of late leads, and chooses the victims. Simulating caches on a sample of the keys is SHARDS'
idea (Waldspurger et al., FAST'15).

Up to a number of keys the others follow: they are told of everything, so that a new leader has an
order of all keys at once. Beyond it that would cost more memory than it is worth. There a new
leader starts empty, and the old one is drained: its victims go first, and a chain that is asked for
again leaves it for the new leader.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Generic, TypeVar

from kvstore.eviction.base import EvictionPolicy

K = TypeVar("K", bound=Hashable)

_SHADOW_KEYS_MAX = 8_192
"""When a shadow holds more, half of the sample is given up."""
_HALF_LIFE_TURNS = 4.0
"""A hit counts half when as many keys were asked for since as the shadow holds, that many times."""
_LEAD = 1.03
"""A challenger takes over when its shadow has so many times the leader's hits."""
_LEAD_DRAINING = 1.1
"""The same where the old leader must be drained, which costs hits."""
_FOLLOWED_KEYS_MAX = 1 << 18
_MIX = 0x9E3779B97F4A7C15
_MIX_BITS = 64


class Adaptive(Generic[K]):
    """`EvictionPolicy` over candidates, the first of which leads at the start. Not thread-safe.

    Costs what the candidates do, for all of 262,144 keys and a sample of more; and what its leader
    does.
    """

    def __init__(self, candidates: Sequence[Callable[[], EvictionPolicy[K]]]) -> None:
        assert candidates
        self._candidates = candidates
        self._shadows = [_Shadow(make()) for make in candidates]
        self._sample = _Sample()
        self._lead = 0
        self._leader = candidates[0]()
        self._followers = {i: make() for i, make in enumerate(candidates) if i}
        """Candidates that do not lead, by number; none any more in a large tier."""
        self._drained: EvictionPolicy[K] | None = None
        self._capacity: int | None = None
        """Keys that there is room for, once it is known."""

    def touch(self, keys: Iterable[K]) -> None:
        chain = list(keys)
        self._observe(chain)
        moved = self._leave_drained(chain)
        for policy in self._told():
            policy.touch(chain)
        if moved:
            self._leader.insert(moved)

    def insert(self, keys: Iterable[K]) -> None:
        batch = list(keys)
        for policy in self._told():
            policy.insert(batch)
        if len(self._leader) > _FOLLOWED_KEYS_MAX:
            self._followers.clear()

    def remove(self, keys: Iterable[K]) -> None:
        batch = list(keys)
        for policy in self._told():
            policy.remove(batch)
        if self._drained is not None:
            self._drained.remove(batch)

    def victims(self, count: int, evictable: Callable[[K], bool]) -> list[K]:
        """See `EvictionPolicy.victims`."""
        self._capacity = len(self)
        self._elect()
        chosen: list[K] = []
        if self._drained is not None:
            chosen = self._drained.victims(count, evictable)
            if not len(self._drained):
                self._drained = None
        if len(chosen) < count:
            chosen += self._leader.victims(count - len(chosen), evictable)
        for policy in self._followers.values():
            policy.remove(chosen)
        return chosen

    def __len__(self) -> int:
        return len(self._leader) + (len(self._drained) if self._drained is not None else 0)

    def __repr__(self) -> str:
        return f"Adaptive(led by {self._leader!r}, {self._sample!r})"

    def _told(self) -> list[EvictionPolicy[K]]:
        return [self._leader, *self._followers.values()]

    def _observe(self, chain: Sequence[K]) -> None:
        sampled = self._sample.of(chain)
        if not sampled:
            return
        capacity = None if self._capacity is None else self._sample.share_of(self._capacity)
        for shadow in self._shadows:
            shadow.access(sampled, capacity)
        if max(len(shadow.resident) for shadow in self._shadows) > _SHADOW_KEYS_MAX:
            self._sample.halve()
            for shadow in self._shadows:
                shadow.keep(self._sample)

    def _leave_drained(self, chain: Sequence[K]) -> list[K]:
        """Those of `chain` that the old leader had, which has them no more."""
        if self._drained is None:
            return []
        moved = []
        for key in chain:
            held = len(self._drained)
            self._drained.remove([key])
            if len(self._drained) < held:
                moved.append(key)
        return moved

    def _elect(self) -> None:
        if self._drained is not None:
            return
        best = max(range(len(self._shadows)), key=lambda i: self._shadows[i].score)
        needed = _LEAD if self._followers else _LEAD_DRAINING
        if self._shadows[best].score > needed * self._shadows[self._lead].score:
            self._hand_over(best)

    def _hand_over(self, new: int) -> None:
        old, self._lead = self._lead, new
        if new in self._followers:
            self._followers[old] = self._leader
            self._leader = self._followers.pop(new)
        else:
            self._drained = self._leader
            self._leader = self._candidates[new]()


class _Sample:
    """A share of all keys, 1 / 2^n, by their hash."""

    def __init__(self) -> None:
        self._bits = 0

    def of(self, keys: Sequence[K]) -> Sequence[K]:
        if not self._bits:
            return keys
        shift, mask = _MIX_BITS - self._bits, (1 << _MIX_BITS) - 1
        return [key for key in keys if not (hash(key) * _MIX & mask) >> shift]

    def share_of(self, count: int) -> int:
        return count >> self._bits

    def halve(self) -> None:
        self._bits += 1

    def __repr__(self) -> str:
        return f"1/{1 << self._bits} sampled"


class _Shadow(Generic[K]):
    """A cache without bytes under one policy, and its fading count of hits."""

    def __init__(self, policy: EvictionPolicy[K]) -> None:
        self.policy = policy
        self.resident: set[K] = set()
        self.score = 0.0

    def access(self, chain: Sequence[K], capacity: int | None) -> None:
        hits = next((i for i, key in enumerate(chain) if key not in self.resident), len(chain))
        if capacity:
            self.score = self.score * 0.5 ** (len(chain) / (_HALF_LIFE_TURNS * capacity)) + hits
        self.policy.touch(chain)
        new = [key for key in chain if key not in self.resident]
        self.policy.insert(new)
        self.resident.update(new)
        if capacity is not None and len(self.resident) > capacity:
            over = len(self.resident) - capacity
            self.resident.difference_update(self.policy.victims(over, lambda key: True))

    def keep(self, sample: _Sample) -> None:
        """Forget the keys that are not in the sample any more."""
        kept = set(sample.of(list(self.resident)))
        self.policy.remove(self.resident - kept)
        self.resident = kept

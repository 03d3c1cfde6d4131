"""SIEVE: one queue, one bit, and a hand that moves from old to new.

Source: Zhang et al., 'SIEVE is Simpler than LRU' (NSDI'24).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class _Entry(Generic[K]):
    __slots__ = ("key", "newer", "older", "visited")

    def __init__(self, key: K) -> None:
        self.key = key
        self.visited = False
        self.newer: _Entry[K] | None = None
        self.older: _Entry[K] | None = None


class Sieve(Generic[K]):
    """`EvictionPolicy` with lazy promotion. Wrap in `PrefixClosed`. Not thread-safe."""

    def __init__(self) -> None:
        self._entries: dict[K, _Entry[K]] = {}
        self._newest: _Entry[K] | None = None
        self._oldest: _Entry[K] | None = None
        self._hand: _Entry[K] | None = None

    def touch(self, keys: Iterable[K]) -> None:
        for key in keys:
            entry = self._entries.get(key)
            if entry is not None:
                entry.visited = True

    def insert(self, keys: Iterable[K]) -> None:
        for key in list(keys)[::-1]:
            entry = self._entries[key] = _Entry(key)
            entry.older = self._newest
            if self._newest is None:
                self._oldest = entry
            else:
                self._newest.newer = entry
            self._newest = entry

    def remove(self, keys: Iterable[K]) -> None:
        for key in keys:
            entry = self._entries.pop(key, None)
            if entry is not None:
                self._unlink(entry)

    def victims(self, count: int, evictable: Callable[[K], bool]) -> list[K]:
        """See `EvictionPolicy.victims`. The hand goes round at most twice for
        each."""
        chosen: list[K] = []
        looks = 2 * len(self._entries)
        while len(chosen) < count and self._entries and looks > 0:
            looks -= 1
            entry = self._hand or self._oldest
            assert entry is not None
            self._hand = entry.newer
            if entry.visited or not evictable(entry.key):
                entry.visited = False
                continue
            self.remove([entry.key])
            chosen.append(entry.key)
            looks = 2 * len(self._entries)
        return chosen

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"Sieve({len(self)} keys)"

    def _unlink(self, entry: _Entry[K]) -> None:
        if self._hand is entry:
            self._hand = entry.newer
        if entry.older is None:
            self._oldest = entry.newer
        else:
            entry.older.newer = entry.newer
        if entry.newer is None:
            self._newest = entry.older
        else:
            entry.newer.older = entry.older

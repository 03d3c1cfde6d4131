"""Least frequently used first; among equals, least recently used first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class LFU(Generic[K]):
    """`EvictionPolicy` by uses while resident. Wrap in `PrefixClosed`. Not thread-safe."""

    def __init__(self) -> None:
        self._uses: dict[K, int] = {}
        self._lines: dict[int, OrderedDict[K, None]] = {}

    def touch(self, keys: Iterable[K]) -> None:
        for key in list(keys)[::-1]:
            uses = self._uses.get(key)
            if uses is not None:
                self._leave_line(key, uses)
                self._join_line(key, uses + 1)

    def insert(self, keys: Iterable[K]) -> None:
        for key in list(keys)[::-1]:
            self._join_line(key, 1)

    def remove(self, keys: Iterable[K]) -> None:
        for key in keys:
            uses = self._uses.pop(key, None)
            if uses is not None:
                self._leave_line(key, uses)

    def victims(self, count: int, evictable: Callable[[K], bool]) -> list[K]:
        """See `EvictionPolicy.victims`."""
        chosen: list[K] = []
        for uses in sorted(self._lines):
            for key in self._lines[uses]:
                if len(chosen) >= count:
                    break
                if evictable(key):
                    chosen.append(key)
        self.remove(chosen)
        return chosen

    def __len__(self) -> int:
        return len(self._uses)

    def __repr__(self) -> str:
        return f"LFU({len(self)} keys)"

    def _join_line(self, key: K, uses: int) -> None:
        self._uses[key] = uses
        self._lines.setdefault(uses, OrderedDict())[key] = None

    def _leave_line(self, key: K, uses: int) -> None:
        line = self._lines[uses]
        del line[key]
        if not line:
            del self._lines[uses]

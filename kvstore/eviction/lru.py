"""Least recently used first; of one access, the tail of the chain first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

_AWAITED_MAX = 1 << 16
"""Keys seen in a chain but not inserted; of more, the oldest are forgotten and count as new."""


@dataclass(slots=True, eq=False)
class _Access(Generic[K]):
    """One use of a chain: its keys that are here, with their positions in it."""

    number: int
    keys: dict[K, int] = field(default_factory=dict)
    """In prefix order as long as `ordered`."""
    awaited: int = 0
    """Keys of the chain that may yet be inserted."""
    ordered: bool = True

    def add(self, key: K, position: int) -> None:
        if self.keys and position < self.keys[next(reversed(self.keys))]:
            self.ordered = False
        self.keys[key] = position

    def tail_first(self) -> Iterable[K]:
        if not self.ordered:
            self.keys = dict(sorted(self.keys.items(), key=lambda item: item[1]))
            self.ordered = True
        return reversed(self.keys)


class LRU(Generic[K]):
    """`EvictionPolicy` by time of last use. Not thread-safe.

    Keys stand in line access by access, and in each from tail to head:

        next ─▶ │ d c b a │ f e │ h g │ ◀─ last access      a..d was the oldest one

    A key that is inserted joins the access that announced it, however long the bytes took to come.
    So a block is never used later than what comes before it in its chain, and eviction leaves no
    hole, unless a caller finds a tail not evictable. Such a key keeps its place in line.
    """

    def __init__(self) -> None:
        self._line: OrderedDict[int, _Access[K]] = OrderedDict()
        self._access_of: dict[K, _Access[K]] = {}
        self._awaited: OrderedDict[K, tuple[_Access[K], int]] = OrderedDict()
        self._next_number = 0

    def touch(self, keys: Iterable[K]) -> None:
        access = self._new_access()
        for position, key in enumerate(keys):
            if key in self._access_of:
                self._place(key, access, position)
            else:
                self._await(key, access, position)
        self._forget_if_empty(access)

    def insert(self, keys: Iterable[K]) -> None:
        fresh = self._new_access()
        for position, key in enumerate(keys):
            announced = self._awaited.pop(key, None)
            if announced is None:
                self._place(key, fresh, position)
            else:
                announced[0].awaited -= 1
                self._place(key, *announced)
        self._forget_if_empty(fresh)

    def remove(self, keys: Iterable[K]) -> None:
        for key in keys:
            if key in self._access_of:
                self._take(key)

    def victims(self, count: int, evictable: Callable[[K], bool]) -> list[K]:
        """See `EvictionPolicy.victims`. Costs O(count + keys passed over)."""
        chosen: list[K] = []
        for access in self._line.values():
            for key in access.tail_first():
                if len(chosen) == count:
                    break
                if evictable(key):
                    chosen.append(key)
            if len(chosen) == count:
                break
        self.remove(chosen)
        return chosen

    def __len__(self) -> int:
        return len(self._access_of)

    def __repr__(self) -> str:
        return f"LRU({len(self)} keys)"

    def _new_access(self) -> _Access[K]:
        access = _Access[K](self._next_number)
        self._next_number += 1
        self._line[access.number] = access
        return access

    def _place(self, key: K, access: _Access[K], position: int) -> None:
        earlier = self._access_of.get(key)
        if earlier is not None:
            del earlier.keys[key]
        access.add(key, position)
        self._access_of[key] = access
        if earlier is not None:
            self._forget_if_empty(earlier)

    def _take(self, key: K) -> None:
        access = self._access_of.pop(key)
        del access.keys[key]
        self._forget_if_empty(access)

    def _await(self, key: K, access: _Access[K], position: int) -> None:
        earlier = self._awaited.pop(key, None)
        self._awaited[key] = (access, position)
        access.awaited += 1
        self._stop_awaiting(earlier)
        if len(self._awaited) > _AWAITED_MAX:
            self._stop_awaiting(self._awaited.popitem(last=False)[1])

    def _stop_awaiting(self, announced: tuple[_Access[K], int] | None) -> None:
        if announced is not None:
            announced[0].awaited -= 1
            self._forget_if_empty(announced[0])

    def _forget_if_empty(self, access: _Access[K]) -> None:
        if not access.keys and not access.awaited:
            self._line.pop(access.number, None)

"""S3-FIFO: a small queue on probation, a main queue, and the names of those turned away.

Source: Yang et al., 'FIFO Queues are All You Need for Cache Eviction' (SOSP'23).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

_SMALL_SHARE = 0.1
_USES_MAX = 3


class S3FIFO(Generic[K]):
    """`EvictionPolicy` with quick demotion of what is used once. Wrap in `PrefixClosed`. Not
    thread-safe.

    Keys that may not go are passed over by moving them to the back of their queue.
    """

    def __init__(self) -> None:
        self._small: OrderedDict[K, None] = OrderedDict()
        self._main: OrderedDict[K, None] = OrderedDict()
        self._ghosts: OrderedDict[K, None] = OrderedDict()
        self._uses: dict[K, int] = {}

    def touch(self, keys: Iterable[K]) -> None:
        for key in keys:
            uses = self._uses.get(key)
            if uses is not None:
                self._uses[key] = min(uses + 1, _USES_MAX)

    def insert(self, keys: Iterable[K]) -> None:
        for key in list(keys)[::-1]:
            self._uses[key] = 0
            known = self._ghosts.pop(key, 0) is None
            (self._main if known else self._small)[key] = None

    def remove(self, keys: Iterable[K]) -> None:
        for key in keys:
            if self._uses.pop(key, None) is not None:
                self._small.pop(key, None)
                self._main.pop(key, None)

    def victims(self, count: int, evictable: Callable[[K], bool]) -> list[K]:
        """See `EvictionPolicy.victims`. Ends after a round of both queues in vain."""
        chosen: list[K] = []
        in_vain = 0
        while len(chosen) < count and in_vain < (_USES_MAX + 2) * len(self._uses):
            if len(self._small) > _SMALL_SHARE * len(self._uses) or not self._main:
                key = self._from_small(evictable)
            else:
                key = self._from_main(evictable)
            if key is None:
                in_vain += 1
            else:
                chosen.append(key)
                in_vain = 0
        return chosen

    def __len__(self) -> int:
        return len(self._uses)

    def __repr__(self) -> str:
        return f"S3FIFO({len(self._small)} on probation, {len(self._main)} kept)"

    def _from_small(self, evictable: Callable[[K], bool]) -> K | None:
        key, _ = self._small.popitem(last=False)
        if self._uses[key] > 0 or not evictable(key):
            self._main[key] = None
            return None
        self._ghosts[key] = None
        while len(self._ghosts) > len(self._uses):
            self._ghosts.popitem(last=False)
        del self._uses[key]
        return key

    def _from_main(self, evictable: Callable[[K], bool]) -> K | None:
        key, _ = self._main.popitem(last=False)
        if self._uses[key] > 0 or not evictable(key):
            self._uses[key] = max(self._uses[key] - 1, 0)
            self._main[key] = None
            return None
        del self._uses[key]
        return key

"""Makes any policy over single keys prefix-closed: only keys without a resident continuation may
go."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from itertools import pairwise
from typing import Generic, TypeVar

from kvstore.eviction.base import EvictionPolicy

K = TypeVar("K", bound=Hashable)

_EXPECTED_KEYS = 1 << 16


class PrefixClosed(Generic[K]):
    """`EvictionPolicy` that keeps count of each key's children. Not thread-safe.

    A chain learnt by `touch` gives new keys their parent. Costs two dict entries a key.
    """

    def __init__(self, policy: EvictionPolicy[K]) -> None:
        self._policy = policy
        self._parent: dict[K, K] = {}
        self._children: dict[K, int] = {}
        self._expected: OrderedDict[K, K] = OrderedDict()
        """Keys seen in chains but not here yet, and what they continue."""

    def touch(self, keys: Iterable[K]) -> None:
        chain = list(keys)
        for parent, key in pairwise(chain):
            if key not in self._parent:
                self._expected[key] = parent
        while len(self._expected) > _EXPECTED_KEYS:
            self._expected.popitem(last=False)
        self._policy.touch(chain)

    def insert(self, keys: Iterable[K]) -> None:
        batch = list(keys)
        for key in batch:
            parent = self._expected.pop(key, None)
            if parent is not None:
                self._parent[key] = parent
                self._children[parent] = self._children.get(parent, 0) + 1
        self._policy.insert(batch)

    def remove(self, keys: Iterable[K]) -> None:
        batch = list(keys)
        for key in batch:
            self._unlink(key)
        self._policy.remove(batch)

    def victims(self, count: int, evictable: Callable[[K], bool]) -> list[K]:
        """See `EvictionPolicy.victims`."""

        def leaf(key: K) -> bool:
            if key in self._children or not evictable(key):
                return False
            self._unlink(key)
            return True

        return self._policy.victims(count, leaf)

    def __len__(self) -> int:
        return len(self._policy)

    def __repr__(self) -> str:
        return f"PrefixClosed({self._policy!r})"

    def _unlink(self, key: K) -> None:
        parent = self._parent.pop(key, None)
        if parent is None:
            return
        if self._children[parent] == 1:
            del self._children[parent]
        else:
            self._children[parent] -= 1

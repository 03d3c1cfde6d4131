"""S3-FIFO: a small queue on probation, a main queue, and the names of those turned away.

Source: Yang et al., 'FIFO Queues are All You Need for Cache Eviction' (SOSP'23). Here it runs over
prefix chains: a key that another one continues is passed over until that one is gone.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable
from itertools import pairwise
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

_SMALL_SHARE = 0.1
_USES_MAX = 3
_EXPECTED_KEYS = 1 << 16
_DEAD_MAX = 1024
"""Removed keys that may lie in the queues, or as many as there are live ones."""
_NONE = -1


class S3FIFO(Generic[K]):
    """`EvictionPolicy` with quick demotion of what is used once. Not thread-safe.

    A key has a number, and what is known of it stands in columns: about 120 bytes a key. A removed
    key stays in its queue, dead, until it comes to the front or the queues are swept.
    """

    def __init__(self) -> None:
        self._number: dict[K, int] = {}
        self._keys: list[K | None] = []
        """By number; None = dead or free."""
        self._uses = bytearray()
        self._on_probation = bytearray()
        self._parent = array("q")
        self._children = array("l")
        self._free: list[int] = []
        self._dead_parents: dict[K, int] = {}
        """Dead keys that keys here continue. One that comes back gets its number again."""
        self._dead_key: dict[int, K] = {}
        self._unburied: set[int] = set()
        """Those of them that have left their queue."""
        self._small: deque[int] = deque()
        self._main: deque[int] = deque()
        self._small_live = 0
        self._ghosts: OrderedDict[int, None] = OrderedDict()
        """Hashes of keys that left on probation."""
        self._expected: OrderedDict[K, K] = OrderedDict()
        """Keys seen in chains but not here yet, and what they continue."""

    def touch(self, keys: Iterable[K]) -> None:
        chain = list(keys)
        for key in chain:
            number = self._number.get(key)
            if number is not None and self._uses[number] < _USES_MAX:
                self._uses[number] += 1
        for parent, key in pairwise(chain):
            if key not in self._number:
                self._expected[key] = parent
        while len(self._expected) > _EXPECTED_KEYS:
            self._expected.popitem(last=False)

    def insert(self, keys: Iterable[K]) -> None:
        batch = [key for key in dict.fromkeys(keys) if key not in self._number]
        queued = {key for key in batch if self._is_queued(key)}
        for key in batch:
            self._number[key] = self._revive(key) if key in self._dead_parents else self._new(key)
        for key in batch:
            self._link(self._number[key], self._expected.pop(key, None))
        for key in reversed(batch):
            if key not in queued:
                self._enqueue(self._number[key], known=self._ghosts.pop(hash(key), 0) is None)

    def remove(self, keys: Iterable[K]) -> None:
        for key in keys:
            number = self._number.get(key)
            if number is not None:
                self._forget(number)
        if len(self._small) + len(self._main) > 2 * len(self._number) + _DEAD_MAX:
            self._small, self._main = self._swept(self._small), self._swept(self._main)

    def victims(self, count: int, evictable: Callable[[K], bool]) -> list[K]:
        """See `EvictionPolicy.victims`. Ends after a round of both queues in vain."""
        chosen: list[K] = []
        in_vain = 0
        while len(chosen) < count and in_vain < (_USES_MAX + 2) * len(self._number):
            key = self._from_front(evictable)
            if key is None:
                in_vain += 1
            else:
                chosen.append(key)
                in_vain = 0
        return chosen

    def __len__(self) -> int:
        return len(self._number)

    def __repr__(self) -> str:
        return f"S3FIFO({self._small_live} of {len(self)} on probation)"

    def _from_front(self, evictable: Callable[[K], bool]) -> K | None:
        """The key at the front of the queue whose turn it is, or None if it had to be passed
        over."""
        queue, number, key = self._front()
        kept = self._uses[number] > 0
        if kept or self._children[number] or not evictable(key):
            if queue is self._main and kept:
                self._uses[number] -= 1
            self._leave_probation(number)
            self._main.append(number)
            return None
        if queue is self._small:
            self._remember(key)
        self._forget(number)
        self._bury(number)
        return key

    def _front(self) -> tuple[deque[int], int, K]:
        """Take the next living key out of its queue. There is one."""
        while True:
            probation = self._small_live > _SMALL_SHARE * len(self._number)
            queue = self._small if self._small and (probation or not self._main) else self._main
            number = queue.popleft()
            if (key := self._keys[number]) is not None:
                return queue, number, key
            self._bury(number)

    def _new(self, key: K) -> int:
        if self._free:
            number = self._free.pop()
            self._keys[number] = key
            self._uses[number] = self._children[number] = 0
            return number
        self._keys.append(key)
        for column in (self._uses, self._on_probation, self._children):
            column.append(0)
        self._parent.append(_NONE)
        return len(self._keys) - 1

    def _is_queued(self, key: K) -> bool:
        """Whether a key that is not here still has a place in a queue that it can take again."""
        number = self._dead_parents.get(key)
        return number is not None and number not in self._unburied

    def _revive(self, key: K) -> int:
        number = self._dead_parents.pop(key)
        del self._dead_key[number]
        self._unburied.discard(number)
        self._keys[number] = key
        self._uses[number] = 0
        return number

    def _link(self, number: int, parent: K | None) -> None:
        """Note what the key continues, if that is here."""
        self._parent[number] = _NONE if parent is None else self._number.get(parent, _NONE)
        if self._parent[number] != _NONE:
            self._children[self._parent[number]] += 1

    def _enqueue(self, number: int, *, known: bool) -> None:
        self._on_probation[number] = not known
        self._small_live += not known
        (self._main if known else self._small).append(number)

    def _leave_probation(self, number: int) -> None:
        self._small_live -= self._on_probation[number]
        self._on_probation[number] = 0

    def _forget(self, number: int) -> None:
        """All but its place in a queue."""
        key = self._keys[number]
        assert key is not None
        del self._number[key]
        self._keys[number] = None
        self._leave_probation(number)
        if self._children[number]:
            self._dead_parents[key] = number
            self._dead_key[number] = key
        parent = self._parent[number]
        if parent != _NONE:
            self._children[parent] -= 1
            if parent in self._dead_key and not self._children[parent]:
                self._let_go(parent)

    def _let_go(self, number: int) -> None:
        """The last child of a dead key is gone."""
        del self._dead_parents[self._dead_key.pop(number)]
        if number in self._unburied:
            self._unburied.remove(number)
            self._free.append(number)

    def _bury(self, number: int) -> None:
        """A dead key has left its queue. Its number is free when no child refers to it."""
        if number in self._dead_key:
            self._unburied.add(number)
        else:
            self._free.append(number)

    def _remember(self, key: K) -> None:
        self._ghosts[hash(key)] = None
        while len(self._ghosts) > len(self._number):
            self._ghosts.popitem(last=False)

    def _swept(self, queue: deque[int]) -> deque[int]:
        live: deque[int] = deque()
        for number in queue:
            if self._keys[number] is None:
                self._bury(number)
            else:
                live.append(number)
        return live

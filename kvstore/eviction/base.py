"""Which block goes first when a tier is full. Pure: no clock, no I/O; shared by nodes and the
simulator."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Protocol, TypeVar

K = TypeVar("K", bound=Hashable)


class EvictionPolicy(Protocol[K]):
    """Order of eviction over the keys that it was told of.

    Not thread-safe: owned by one tier. `insert`, `touch` and `remove` are O(1) amortised per key
    and take batches. Batches are in prefix order, and a policy puts the *tail* of a batch first in
    line, so that eviction is prefix-closed: a block never outlives the blocks that come before it
    in its chain by the policy's own choice.
    """

    def insert(self, keys: Iterable[K]) -> None:
        """New keys of one chain, in prefix order."""

    def touch(self, keys: Iterable[K]) -> None:
        """Keys of one chain that were read, in prefix order. Unknown keys are ignored."""

    def remove(self, keys: Iterable[K]) -> None:
        """Keys that left for another reason. Unknown keys are ignored."""

    def victims(self, count: int, evictable: Callable[[K], bool]) -> list[K]:
        """Up to `count` keys to evict next, first choice first; those not `evictable` are passed
        over.

        The policy forgets the keys that it returns.
        """

    def __len__(self) -> int: ...

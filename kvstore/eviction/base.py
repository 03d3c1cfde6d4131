"""Which block goes first when a tier is full. Pure: no I/O, the clock is passed in; shared by nodes
and the
simulator."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Protocol, TypeVar

K = TypeVar("K", bound=Hashable)


class EvictionPolicy(Protocol[K]):
    """Order of eviction over the keys that it was told of. Not thread-safe: owned by one tier.

    Batches are chains in prefix order. Eviction is *prefix-closed*: the tail of a chain goes before
    its head, whatever a policy thinks of the single keys. So an access first shows the whole chain
    to `touch`, then tells `insert` which of its keys were new.

    `insert`, `touch` and `remove` are O(1) amortised per key.
    """

    def touch(self, keys: Iterable[K]) -> None:
        """A chain was read or is being extended. It may contain keys that are not here (yet)."""

    def insert(self, keys: Iterable[K]) -> None:
        """New keys of one chain."""

    def remove(self, keys: Iterable[K]) -> None:
        """Keys that left for another reason. Unknown keys are ignored."""

    def victims(self, count: int, evictable: Callable[[K], bool]) -> list[K]:
        """Up to `count` keys to evict next, first choice first; those not `evictable` are passed
        over.

        The policy forgets the keys that it returns. `evictable` is asked about a key right before
        it is taken: every key that it says yes to is returned.
        """

    def __len__(self) -> int: ...

"""How an engine reaches the store: blocks in and out of the device tier, beside the computation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from kvstore.core.ids import BlockHash
from kvstore.tiers.base import TierKind

Fetched = Callable[[Sequence[TierKind]], None]
"""Takes the tiers that the leading blocks came from: that many are in the device tier now."""

Published = Callable[[], None]
"""Called when blocks are in the store, or were given up: their memory may be used again."""


class StoreConnector(Protocol):
    """Copies blocks between the device tier and the store.

    Both verbs return at once and call back later, exactly once, from any thread. Until then the
    blocks belong to the connector. They never raise: whatever goes wrong with the store is a miss,
    or a block that is not published. A fetch calls back within its deadline, or soon after.
    """

    @property
    def enabled(self) -> bool:
        """False if there is no store to ask, and never will be."""

    def fetch(self, hashes: Sequence[BlockHash], block_ids: Sequence[int], done: Fetched) -> None:
        """Bring the leading blocks that the store has into `block_ids`; the rest of them is
        undefined afterwards."""

    def publish(
        self, hashes: Sequence[BlockHash], block_ids: Sequence[int], done: Published
    ) -> bool:
        """Put blocks into the store. False if too many are on their way: then `done` is not
        called."""

    def close(self) -> None:
        """Publish what is on its way, for a bounded time. Idempotent."""


class NullStore:
    """For a worker without a node."""

    enabled = False

    def fetch(self, hashes: Sequence[BlockHash], block_ids: Sequence[int], done: Fetched) -> None:
        done([])

    def publish(
        self, hashes: Sequence[BlockHash], block_ids: Sequence[int], done: Published
    ) -> bool:
        return False

    def close(self) -> None:
        pass

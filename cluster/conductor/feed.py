"""Takes one member's block events into the index."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from cluster.conductor.index import PrefixIndex, Slot
from kvstore.core.ids import BlockHash, BlockKeys, RoutingKey, pack_hashes
from kvstore.tiers.base import TierKind


class IndexFeed:
    """An event target for as long as it is `valid`: afterwards the slot belongs to somebody else,
    and late events are dropped."""

    def __init__(self, index: PrefixIndex, slot: Slot, valid: Callable[[], bool]) -> None:
        self._index = index
        self._slot = slot
        self._valid = valid

    @property
    def valid(self) -> bool:
        """Whether the member is still registered as it was when it got this feed."""
        return self._valid()

    def stored(self, tier: TierKind, keys: BlockKeys) -> None:
        if self.valid:
            self._index.stored(self._slot, tier, routing_keys(keys.hashes))

    def removed(self, tier: TierKind, keys: BlockKeys) -> None:
        if self.valid:
            self._index.removed(self._slot, tier, routing_keys(keys.hashes))

    def cleared(self, tier: TierKind) -> None:
        if self.valid:
            self._index.cleared(self._slot, tier)

    def reset(self) -> None:
        if self.valid:
            self._index.forget(self._slot)


def routing_keys(hashes: Sequence[BlockHash]) -> list[RoutingKey]:
    """`kvstore.core.ids.routing_key` of each, in one go."""
    keys: list[RoutingKey] = np.frombuffer(pack_hashes(hashes), "<u8")[::4].tolist()
    return keys

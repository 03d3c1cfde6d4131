"""What a worker has told the world of its device tier, for those who ask again."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from kvstore.core.ids import BlockHash, BlockKeys, LayoutFingerprint
from kvstore.events.base import EventSink
from kvstore.tiers.base import TierKind


class RecordedInventory:
    """An `EventSink` that remembers, and passes on to `audience`. Thread-safe.

    It changes before the audience hears of it: a snapshot thus shows all that was recorded before,
    and of a removal under way at most too little, which the event that follows only repeats.
    """

    def __init__(self, layout: LayoutFingerprint) -> None:
        self._layout = layout
        self._lock = threading.Lock()
        self._tiers: dict[TierKind, dict[BlockHash, None]] = {}
        self.audience: EventSink | None = None

    def stored(self, tier: TierKind, keys: BlockKeys) -> None:
        with self._lock:
            self._tiers.setdefault(tier, {}).update(dict.fromkeys(keys.hashes))
        if self.audience is not None:
            self.audience.stored(tier, keys)

    def removed(self, tier: TierKind, keys: BlockKeys) -> None:
        with self._lock:
            held = self._tiers.get(tier, {})
            for block_hash in keys.hashes:
                held.pop(block_hash, None)
        if self.audience is not None:
            self.audience.removed(tier, keys)

    def cleared(self, tier: TierKind) -> None:
        with self._lock:
            self._tiers.pop(tier, None)
        if self.audience is not None:
            self.audience.cleared(tier)

    def __call__(self) -> Sequence[tuple[TierKind, BlockKeys]]:
        """An `Inventory`."""
        with self._lock:
            return [
                (tier, BlockKeys(self._layout, list(held))) for tier, held in self._tiers.items()
            ]

"""An event sink for stores without an audience."""

from __future__ import annotations

from kvstore.core.ids import BlockKeys
from kvstore.tiers.base import TierKind


class NullEventSink:
    def stored(self, tier: TierKind, keys: BlockKeys) -> None:
        pass

    def removed(self, tier: TierKind, keys: BlockKeys) -> None:
        pass

    def cleared(self, tier: TierKind) -> None:
        pass

"""One stream of block events for several sinks."""

from __future__ import annotations

from kvstore.core.ids import BlockKeys
from kvstore.events.base import EventSink
from kvstore.tiers.base import TierKind


class TeeSink:
    """An `EventSink` that tells each of `sinks`, in order."""

    def __init__(self, *sinks: EventSink) -> None:
        self._sinks = sinks

    def stored(self, tier: TierKind, keys: BlockKeys) -> None:
        for sink in self._sinks:
            sink.stored(tier, keys)

    def removed(self, tier: TierKind, keys: BlockKeys) -> None:
        for sink in self._sinks:
            sink.removed(tier, keys)

    def cleared(self, tier: TierKind) -> None:
        for sink in self._sinks:
            sink.cleared(tier)

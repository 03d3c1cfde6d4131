"""Block events: how nodes and workers tell the directory and the conductor what they hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from kvstore.core.ids import BlockKeys
from kvstore.tiers.base import TierKind

Inventory = Callable[[], Sequence[tuple[TierKind, BlockKeys]]]
"""All blocks that a publisher holds, for snapshots. Called on the publisher's event loop.

It shows at least all that was recorded before the call. Where another thread changes the holdings,
it returns a copy taken safely, and may show more: events say what is so, so one that is repeated
after a newer snapshot does no harm."""


class EventSink(Protocol):
    """Takes notice of blocks coming and going. Cheap and never blocks: recording is not sending.

    Called from one thread per sink. `kvstore.events.null.NullEventSink` is for those without an
    audience.
    """

    def stored(self, tier: TierKind, keys: BlockKeys) -> None: ...

    def removed(self, tier: TierKind, keys: BlockKeys) -> None: ...

    def cleared(self, tier: TierKind) -> None: ...

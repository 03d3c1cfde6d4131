"""What this node holds, tier by tier, and telling the world when that changes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kvstore.core.ids import BlockHash, BlockKey, BlockKeys, LayoutFingerprint
from kvstore.events.base import EventSink
from kvstore.node.ghosts import Ghosts
from kvstore.tiers.base import AddressableTier, MissReason, Tier, TierKind

MAX_GHOSTS = 131_072
MAX_CORRUPT_GHOSTS = 4_096


class Replicas:
    """The tiers of one node, the events of their blocks, and the reasons for those that are absent.

    Owned by the node's event loop, and used there only.
    """

    def __init__(self, host: AddressableTier, disk: Tier | None, sink: EventSink) -> None:
        self.host = host
        self.disk = disk
        self._sink = sink
        self._ghosts = Ghosts(MAX_GHOSTS)
        self._corrupt_ghosts = Ghosts(MAX_CORRUPT_GHOSTS)

    def tier_of(self, key: BlockKey) -> TierKind | None:
        """The fastest tier that holds a readable replica."""
        if key in self.host:
            return TierKind.HOST
        return TierKind.DISK if self.on_disk(key) else None

    def on_disk(self, key: BlockKey) -> bool:
        return self.disk is not None and key in self.disk

    def why_absent(self, key: BlockKey) -> MissReason:
        """The one reason why a block that is in no tier is not here."""
        if self.host.pending(key):
            return MissReason.PENDING
        if key in self._corrupt_ghosts:
            return MissReason.CORRUPT
        return MissReason.EVICTED if key in self._ghosts else MissReason.NEVER_STORED

    def stored(self, tier: TierKind, keys: Sequence[BlockKey]) -> None:
        """Tell that `keys` are in `tier` now."""
        self._ghosts.discard(keys)
        self._corrupt_ghosts.discard(keys)
        for batch in by_layout(keys):
            self._sink.stored(tier, batch)

    def evicted(self, tier: TierKind, keys: Sequence[BlockKey]) -> None:
        """Tell that `keys` left `tier` for want of space.

        Disk work ends on another thread and is told of later, in which time a block may have come
        back: such a block did not leave.
        """
        self.lost(tier, keys)
        self._ghosts.add(key for key in keys if self.tier_of(key) is None)

    def lost(self, tier: TierKind, keys: Sequence[BlockKey]) -> None:
        """Tell that `keys` left `tier` for another reason than space."""
        held = self.host if tier is TierKind.HOST else self.disk
        assert held is not None
        for batch in by_layout([key for key in keys if key not in held]):
            self._sink.removed(tier, batch)

    def corrupt(self, tier: TierKind, keys: Sequence[BlockKey]) -> None:
        """Tell that `keys` left `tier` because their bytes were wrong."""
        self.lost(tier, keys)
        self._corrupt_ghosts.add(key for key in keys if self.tier_of(key) is None)

    def evict_to_low_watermark(self) -> None:
        self.evicted(TierKind.HOST, self.host.evict_to_low_watermark())

    def inventory(self) -> list[tuple[TierKind, BlockKeys]]:
        """Everything held, for snapshots."""
        tiers: list[Tier] = [self.host] if self.disk is None else [self.host, self.disk]
        return [
            (tier.kind, batch)
            for tier in tiers
            for batch in by_layout([info.key for info in tier.inventory()])
        ]


def by_layout(keys: Iterable[BlockKey]) -> list[BlockKeys]:
    """The same keys in batches of one layout each, their order kept."""
    batches: dict[LayoutFingerprint, list[BlockHash]] = {}
    for key in keys:
        batches.setdefault(key.layout, []).append(key.hash)
    return [BlockKeys(layout, hashes) for layout, hashes in batches.items()]

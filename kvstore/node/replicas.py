"""What this node holds, tier by tier, and telling the world when that changes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import compress
from typing import cast

from kvstore.core.ids import BlockHash, BlockKey, BlockKeys, LayoutFingerprint
from kvstore.events.base import EventSink
from kvstore.node.ghosts import Ghosts
from kvstore.tiers.base import AddressableTier, MissReason, Reserved, Tier, TierKind

MAX_GHOSTS = 131_072
MAX_CORRUPT_GHOSTS = 4_096
_PREFIX_STEP = 4_096
"""Keys that are looked up at once: so many are in vain when the first is a miss."""


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
        self.admit: Callable[[Sequence[BlockKey], int], Reserved] = self.reserve_freely
        """Who decides about memory for new blocks."""
        self.left_host: Callable[[Sequence[BlockKey]], None] = _ignore
        """Told of blocks that are in the host tier no more, for whatever reason."""

    def reserve(self, keys: Sequence[BlockKey], block_bytes: int) -> Reserved:
        """Memory for new blocks of one layout, within quotas: the one way into the host tier. See
        `AddressableTier.reserve`; tells of what was evicted for them."""
        return self.admit(keys, block_bytes)

    def reserve_freely(self, keys: Sequence[BlockKey], block_bytes: int) -> Reserved:
        """The same without quotas."""
        reserved = self.host.reserve(keys, block_bytes)
        self.evicted(TierKind.HOST, reserved.evicted)
        return reserved

    def tier_of(self, key: BlockKey) -> TierKind | None:
        """The fastest tier that holds a readable replica."""
        if key in self.host:
            return TierKind.HOST
        return TierKind.DISK if self.on_disk(key) else None

    def tiers_of(self, keys: Sequence[BlockKey]) -> list[TierKind | None]:
        """`tier_of` for many keys at once."""
        in_host = self.host.present(keys)
        tiers: list[TierKind | None] = [TierKind.HOST if here else None for here in in_host]
        if self.disk is not None and not all(in_host):
            holes = [i for i, here in enumerate(in_host) if not here]
            on_disk = self.disk.present([keys[i] for i in holes])
            for i in compress(holes, on_disk):
                tiers[i] = TierKind.DISK
        return tiers

    def prefix_tiers(self, keys: BlockKeys) -> list[TierKind]:
        """Fastest tier of each key of the longest prefix present."""
        found: list[TierKind] = []
        for start in range(0, len(keys), _PREFIX_STEP):
            tiers = self.tiers_of(list(keys[start : start + _PREFIX_STEP]))
            here = tiers.index(None) if None in tiers else len(tiers)
            found += cast(list[TierKind], tiers[:here])
            if here < len(tiers):
                break
        return found

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
        gone = [key for key in keys if key not in held]
        for batch in by_layout(gone):
            self._sink.removed(tier, batch)
        if tier is TierKind.HOST and gone:
            self.left_host(gone)

    def corrupt(self, tier: TierKind, keys: Sequence[BlockKey]) -> None:
        """Tell that `keys` left `tier` because their bytes were wrong."""
        self.lost(tier, keys)
        self._corrupt_ghosts.add(key for key in keys if self.tier_of(key) is None)

    def remove(self, keys: Sequence[BlockKey]) -> int:
        """Drop blocks that are not wanted any more from every tier; returns how many were in
        one."""
        in_host = self.host.drop(keys)
        on_disk = self.disk.drop(keys) if self.disk is not None else []
        self.lost(TierKind.HOST, in_host)
        if on_disk:
            self.lost(TierKind.DISK, on_disk)
        self._ghosts.discard(keys)
        self._corrupt_ghosts.discard(keys)
        return len({*in_host, *on_disk})

    def keys_of(self, layouts: Collection[LayoutFingerprint]) -> list[BlockKey]:
        """All blocks of some layouts, in any tier. Looks at every block: call it off the loop."""
        tiers: list[Tier] = [self.host] if self.disk is None else [self.host, self.disk]
        keys = (info.key for tier in tiers for info in tier.inventory())
        return list(dict.fromkeys(key for key in keys if key.layout in layouts))

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


def _ignore(_: Sequence[BlockKey]) -> None:
    pass


def by_layout(keys: Iterable[BlockKey]) -> list[BlockKeys]:
    """The same keys in batches of one layout each, their order kept."""
    batches: dict[LayoutFingerprint, list[BlockHash]] = {}
    for key in keys:
        batches.setdefault(key.layout, []).append(key.hash)
    return [BlockKeys(layout, hashes) for layout, hashes in batches.items()]

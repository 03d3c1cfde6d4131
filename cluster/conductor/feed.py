"""Takes one member's block events into the index."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from cluster.conductor.index import PrefixIndex, Slot
from cluster.conductor.routing_keys import RoutingKeys
from kvstore.core.ids import BlockKeys, LayoutFingerprint, RoutingKey
from kvstore.tiers.base import TierKind


class IndexFeed:
    """An event target for as long as it is `valid`: afterwards the slot belongs to somebody else,
    and late events are dropped and counted.

    The index knows blocks by their hash alone. A member that has a hash in several layouts (the KV
    groups of one model, tenants of one node) has it until the last of these blocks goes: of a model
    with sliding windows those with full attention, which alone are read from the first block on.
    """

    def __init__(
        self,
        index: PrefixIndex,
        slot: Slot,
        valid: Callable[[], bool],
        layouts: Mapping[TierKind, LayoutFingerprint] | None = None,
    ) -> None:
        """`layouts`: of the blocks that the index has of it already."""
        self._index = index
        self._slot = slot
        self._valid = valid
        self._layouts = _Layouts(index, slot, layouts)
        self.resets = 0
        """How often all that it held was forgotten at once."""

    @property
    def valid(self) -> bool:
        """Whether the member is still registered as it was when it got this feed."""
        return self._valid()

    @property
    def layouts(self) -> Mapping[TierKind, LayoutFingerprint] | None:
        """Of its blocks, by tier; None if a tier has several."""
        return self._layouts.single()

    def stored(self, tier: TierKind, keys: BlockKeys) -> None:
        if self._takes():
            names = RoutingKeys.of_hashes(keys.hashes)
            self._layouts.stored(tier, keys.layout, names)
            self._index.stored(self._slot, tier, names)

    def removed(self, tier: TierKind, keys: BlockKeys) -> None:
        if self._takes():
            names = self._layouts.removed(tier, keys.layout, RoutingKeys.of_hashes(keys.hashes))
            self._index.removed(self._slot, tier, names)

    def cleared(self, tier: TierKind) -> None:
        if self._takes():
            self._layouts.cleared(tier)
            self._index.cleared(self._slot, tier)

    def reset(self) -> None:
        if self.valid:
            self._layouts = _Layouts(self._index, self._slot)
            self._index.forget(self._slot)
            self.resets += 1

    def _takes(self) -> bool:
        if not self.valid:
            self._index.late_events += 1
            return False
        return True


class _Layouts:
    """In which layouts a member has its blocks. Costs nothing while a tier has a single one: what
    the index has of it are its blocks."""

    def __init__(
        self,
        index: PrefixIndex,
        slot: Slot,
        single: Mapping[TierKind, LayoutFingerprint] | None = None,
    ) -> None:
        self._index = index
        self._slot = slot
        self._single = dict(single or {})
        self._several: dict[TierKind, dict[LayoutFingerprint, set[RoutingKey]]] = {}

    def single(self) -> Mapping[TierKind, LayoutFingerprint] | None:
        return None if self._several else dict(self._single)

    def stored(
        self, tier: TierKind, layout: LayoutFingerprint, names: Sequence[RoutingKey]
    ) -> None:
        """Before the index hears of them."""
        if tier not in self._several:
            first = self._single.setdefault(tier, layout)
            if first == layout:
                return
            self._several[tier] = {first: set(self._index.held(self._slot, tier))}
        self._several[tier].setdefault(layout, set()).update(names)

    def removed(
        self, tier: TierKind, layout: LayoutFingerprint, names: Sequence[RoutingKey]
    ) -> Sequence[RoutingKey]:
        """Those that the member has in no layout any more."""
        if tier not in self._several:
            return names if self._single.get(tier) == layout else []
        held = self._several[tier]
        held.get(layout, set()).difference_update(names)
        return [name for name in names if not any(name in others for others in held.values())]

    def cleared(self, tier: TierKind) -> None:
        self._single.pop(tier, None)
        self._several.pop(tier, None)

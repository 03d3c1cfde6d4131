"""The directory's state: events in, replicas out. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kvstore.core.ids import BlockKey, BlockKeys, MemberId
from kvstore.directory.base import Replica
from kvstore.tiers.base import TierKind


class DirectoryState:
    """Both ways round: the replicas of a block, and the blocks of a (publisher, tier)."""

    def __init__(self) -> None:
        self._replicas: dict[BlockKey, set[Replica]] = {}
        self._held: dict[Replica, set[BlockKey]] = {}

    def __len__(self) -> int:
        """Blocks with at least one replica."""
        return len(self._replicas)

    def stored(self, publisher: MemberId, tier: TierKind, keys: Iterable[BlockKey]) -> None:
        replica = Replica(publisher, tier)
        held = self._held.setdefault(replica, set())
        for key in keys:
            held.add(key)
            self._replicas.setdefault(key, set()).add(replica)

    def removed(self, publisher: MemberId, tier: TierKind, keys: Iterable[BlockKey]) -> None:
        replica = Replica(publisher, tier)
        gone = self._held.get(replica, set()).intersection(keys)
        if gone:
            self._held[replica] -= gone
            self._drop(replica, gone)

    def cleared(self, publisher: MemberId, tier: TierKind) -> None:
        replica = Replica(publisher, tier)
        self._drop(replica, self._held.pop(replica, ()))

    def forget(self, publisher: MemberId) -> None:
        for tier in TierKind:
            self.cleared(publisher, tier)

    def locate(self, keys: BlockKeys) -> list[Sequence[Replica]]:
        return [sorted(self._replicas.get(key, ()), key=_nearness) for key in keys]

    def longest_prefix(self, keys: BlockKeys) -> int:
        for length, key in enumerate(keys):
            if key not in self._replicas:
                return length
        return len(keys)

    def _drop(self, replica: Replica, keys: Iterable[BlockKey]) -> None:
        for key in keys:
            replicas = self._replicas[key]
            replicas.remove(replica)
            if not replicas:
                del self._replicas[key]


def _nearness(replica: Replica) -> tuple[TierKind, MemberId]:
    return replica.tier, replica.publisher

"""The directory inside one process."""

from __future__ import annotations

from collections.abc import Sequence

from kvstore.core.ids import BlockKeys, MemberId
from kvstore.directory.base import Replica
from kvstore.directory.state import DirectoryState
from kvstore.tiers.base import TierKind


class MemoryDirectory:
    """Implements `Directory` on one event loop; never fails, never waits."""

    def __init__(self) -> None:
        self._state = DirectoryState()

    async def stored(self, publisher: MemberId, tier: TierKind, keys: BlockKeys) -> None:
        self._state.stored(publisher, tier, keys)

    async def removed(self, publisher: MemberId, tier: TierKind, keys: BlockKeys) -> None:
        self._state.removed(publisher, tier, keys)

    async def cleared(self, publisher: MemberId, tier: TierKind) -> None:
        self._state.cleared(publisher, tier)

    async def forget(self, publisher: MemberId) -> None:
        self._state.forget(publisher)

    async def locate(self, keys: BlockKeys) -> list[Sequence[Replica]]:
        return self._state.locate(keys)

    async def longest_prefix(self, keys: BlockKeys) -> int:
        return self._state.longest_prefix(keys)

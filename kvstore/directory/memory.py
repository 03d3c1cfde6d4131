"""The directory inside one process."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from kvstore.core.ids import BlockKeys, MemberId
from kvstore.directory.base import Replica
from kvstore.directory.state import DirectoryState
from kvstore.tiers.base import TierKind

_SWEEP_STEP_BLOCKS = 4096
"""About a millisecond."""


class MemoryDirectory:
    """Implements `Directory` on one event loop; never fails. Only `cleared` and `forget` wait:
    their effect is there at once, and they return when the memory is given back."""

    def __init__(self) -> None:
        self._state = DirectoryState()

    async def stored(self, publisher: MemberId, tier: TierKind, keys: BlockKeys) -> None:
        self._state.stored(publisher, tier, keys)

    async def removed(self, publisher: MemberId, tier: TierKind, keys: BlockKeys) -> None:
        self._state.removed(publisher, tier, keys)

    async def cleared(self, publisher: MemberId, tier: TierKind) -> None:
        self._state.cleared(publisher, tier)
        await sweep(self._state)

    async def forget(self, publisher: MemberId) -> None:
        self._state.forget(publisher)
        await sweep(self._state)

    async def locate(self, keys: BlockKeys) -> list[Sequence[Replica]]:
        return self._state.locate(keys)

    async def longest_prefix(self, keys: BlockKeys) -> int:
        return self._state.longest_prefix(keys)


async def sweep(state: DirectoryState) -> None:
    """To the end, in steps between which others run."""
    while state.sweep(_SWEEP_STEP_BLOCKS):  # noqa: ASYNC110
        await asyncio.sleep(0)

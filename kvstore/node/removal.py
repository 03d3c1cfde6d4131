"""Blocks that are not wanted any more leave every tier of this node."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Executor
from functools import partial

from kvstore.core.ids import BlockKey, LayoutFingerprint
from kvstore.node.arrivals import Arrivals
from kvstore.node.demotion import Demotion
from kvstore.node.replicas import Replicas
from kvstore.tiers.base import MissReason

STEP_BLOCKS = 2_048
"""Blocks dropped before others get their turn on the event loop."""


class Removal:
    """Owned by the node's event loop.

    A removed block is invisible at once; under lease its memory waits for the release. One that is
    on its way up from disk or from another node goes when it has arrived. One that is being written
    is not there yet, and becomes visible when its writer commits it. On disk a removed block is
    forgotten, not erased: a restart of the node may find its record again, if the segment it lies
    in is still there (bytes that are addressed by their content cannot be stale).
    """

    def __init__(
        self,
        replicas: Replicas,
        arrivals: Arrivals,
        demotion: Demotion | None,
        executor: Executor,
    ) -> None:
        self._replicas = replicas
        self._arrivals = arrivals
        self._demotion = demotion
        self._executor = executor

    async def remove(self, keys: Sequence[BlockKey]) -> int:
        """Returns how many blocks were in some tier."""
        num_removed = 0
        for step in _steps(keys):
            num_removed += self._drop(step)
            await asyncio.sleep(0)
        return num_removed

    async def clear(self, layouts: Collection[LayoutFingerprint]) -> int:
        """Remove all blocks of these layouts; one that becomes visible during the call may stay."""
        loop = asyncio.get_running_loop()
        wanted = frozenset(layouts)
        keys = await loop.run_in_executor(self._executor, self._replicas.keys_of, wanted)
        on_their_way = self._arrivals.keys()
        keys += [key for key in on_their_way if key.layout in wanted]
        return await self.remove(list(dict.fromkeys(keys)))

    def _drop(self, keys: Sequence[BlockKey]) -> int:
        for key in keys:
            if (arrival := self._arrivals.find(key)) is not None:
                arrival.future.add_done_callback(partial(self._drop_arrived, key))
        if self._demotion is not None:
            self._demotion.removed(keys)
        return self._replicas.remove(keys)

    def _drop_arrived(self, key: BlockKey, _: asyncio.Future[MissReason | None]) -> None:
        self._drop([key])


def _steps(keys: Sequence[BlockKey]) -> Iterator[Sequence[BlockKey]]:
    return (keys[i : i + STEP_BLOCKS] for i in range(0, len(keys), STEP_BLOCKS))

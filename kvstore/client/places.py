"""Where blocks of this host were found, so that reading one again takes no word with the node.

What makes this right is the generation: one that is unchanged after a copy proves that the slot
still held that very block, whoever has a lease on it (see `kvstore.tiers.host.arena.Arena`). What
is not right any more costs a look, and then the ordinary way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from itertools import islice, repeat
from typing import Any, NamedTuple

from kvstore.client.blocks import FoundBlock
from kvstore.client.connection import Session
from kvstore.client.fencing import LeasedFrom
from kvstore.client.lease import Lease
from kvstore.core.errors import KVStoreError
from kvstore.core.ids import BlockHash, BlockKeys, LayoutFingerprint
from kvstore.tiers.base import TierKind

MAX_PLACES = 16_384
GATHER_S = 0.05
"""Uses of remembered places are told to the node that often, all in one call: eviction must know
what is used, though not at once."""

Tell = Callable[[BlockKeys], Coroutine[Any, Any, None]]


class _Place(NamedTuple):
    offset: int
    block: FoundBlock
    """As it was found; its index is that of another batch."""


_new_place: Callable[[tuple[int, FoundBlock]], _Place] = partial(tuple.__new__, _Place)


class Places:
    """Of one client, on its event loop. Bound: MAX_PLACES, the oldest of which are forgotten."""

    def __init__(self, tell: Tell) -> None:
        """`tell` the node that blocks were used; what it raises is of no consequence."""
        self._tell = tell
        self._session: Session | None = None
        self._places: dict[tuple[LayoutFingerprint, BlockHash], _Place] = {}
        self._used: dict[LayoutFingerprint, dict[BlockHash, None]] = {}
        self._teller: asyncio.Task[None] | None = None

    def remember(self, lease: Lease, keys: BlockKeys) -> None:
        """After a good copy of all blocks found."""
        if not lease.mapped:
            return
        if (session := lease.session) is not self._session:
            self._places.clear()
            self._session = session
        hashes = keys.hashes
        names = [(keys.layout, hashes[block.index]) for block in lease.found]
        places = map(_new_place, zip(lease.offsets, lease.found, strict=True))
        self._places.update(zip(names, places, strict=True))
        if len(self._places) > MAX_PLACES:
            self._forget_oldest()

    def find(self, origin: LeasedFrom, keys: BlockKeys) -> Lease | None:
        """All of the blocks as they were found before, under no lease; None if one is unknown."""
        if origin.session is not self._session:
            return None
        names = list(zip(repeat(keys.layout), keys.hashes))
        if not all(map(self._places.__contains__, names)):
            return None
        places = list(map(self._places.__getitem__, names))
        found = [
            FoundBlock(index, TierKind.HOST, block.view, block.checksum, block.generation)
            for index, (_, block) in enumerate(places)
        ]
        return Lease(origin, range(len(found)), [place.offset for place in places], found, {})

    def used(self, keys: BlockKeys) -> None:
        hashes = self._used.setdefault(keys.layout, {})
        hashes.update(dict.fromkeys(keys.hashes))
        if self._teller is None or self._teller.done():
            self._teller = asyncio.create_task(self._tell_uses())

    def forget(self, keys: BlockKeys) -> None:
        for block_hash in keys.hashes:
            self._places.pop((keys.layout, block_hash), None)

    def clear(self) -> None:
        self._places.clear()

    async def close(self) -> None:
        """Idempotent."""
        self.clear()
        if self._teller is not None:
            self._teller.cancel()
            await asyncio.wait([self._teller])

    def _forget_oldest(self) -> None:
        """A quarter more than must be: what went from the front of a dict is passed again by
        whoever looks for its front."""
        count = len(self._places) - MAX_PLACES * 3 // 4
        for name in list(islice(self._places, count)):
            del self._places[name]

    async def _tell_uses(self) -> None:
        while True:
            await asyncio.sleep(GATHER_S)
            used, self._used = self._used, {}
            if not used:
                return
            for layout, hashes in used.items():
                with suppress(KVStoreError):
                    await self._tell(BlockKeys(layout, list(hashes)))

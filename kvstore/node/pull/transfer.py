"""One pull from one peer: lease, bytes into reserved host memory, publish, release."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence

from kvstore.client.deadline import Deadline
from kvstore.core.errors import DeadlineExceededError, KVStoreError
from kvstore.core.ids import BlockKey, BlockKeys
from kvstore.node.pull.peer import Peer
from kvstore.node.pull.remote import RemoteBlock, RemoteLease
from kvstore.node.pull.space import Place, ReplicaSpace
from kvstore.tiers.base import MissReason

_LOG = logging.getLogger(__name__)

BATCH_BYTES = 16 << 20
"""Small enough that the first blocks of a long prefix are there before the last ones are sent."""
BATCHES_IN_FLIGHT = 2
"""One is on the way while the next is asked for; on one host, two threads copy."""


class Transfer:
    """Blocks of one layout that one peer is to send. `run` once.

    `left` are those that did not come so far, and why: keys leave it as their blocks are published
    or settled, so that it is right whenever `run` ends, and however: with an answer, an error of
    the peer's, or cancelled. Then no byte is written into host memory any more.
    """

    def __init__(self, peer: Peer, keys: BlockKeys, space: ReplicaSpace) -> None:
        self.peer = peer
        self.keys = keys
        self.left: dict[BlockKey, MissReason] = dict.fromkeys(keys, MissReason.LATE)
        self._space = space
        self._corrupt: list[RemoteBlock] = []

    @property
    def delivered(self) -> bool:
        """Whether any block came through."""
        return len(self.left) < len(self.keys)

    async def run(self, deadline: Deadline) -> None:
        """Never raises but when cancelled."""
        if not self.peer.breaker.admit():
            return self._fail(MissReason.FAILED)
        try:
            async with self.peer.judged(deadline):
                await self._run(deadline)
        except DeadlineExceededError as error:
            _LOG.info("%s", error)
            self._fail(MissReason.LATE)
        except KVStoreError as error:
            _LOG.info("node %s: %s", self.peer.record.node_id, error)
            self._fail(MissReason.FAILED)

    async def _run(self, deadline: Deadline) -> None:
        lease = await self.peer.acquire(self.keys, deadline)
        self.left.update(lease.misses)
        try:
            await self._land(lease, deadline)
        finally:
            await self.peer.release(lease, self._corrupt)

    async def _land(self, lease: RemoteLease, deadline: Deadline) -> None:
        blocks = {block.info.key: block for block in lease.blocks}
        places = self._space.reserve(block.info for block in lease.blocks)
        here = {place.info.key: place for place in places}
        for key in blocks.keys() - here.keys():
            del self.left[key]  # settled
        batches = _batches([(blocks[key], place) for key, place in here.items()])
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(BATCHES_IN_FLIGHT):
                    group.create_task(self._read_batches(lease, batches, here, deadline))
        except* KVStoreError as errors:
            raise errors.exceptions[0] from None
        finally:  # all readers have ended: what is left holds nothing, and nobody writes there
            self._space.give_back(list(here.values()))

    async def _read_batches(
        self,
        lease: RemoteLease,
        batches: Iterator[Sequence[tuple[RemoteBlock, Place]]],
        here: dict[BlockKey, Place],
        deadline: Deadline,
    ) -> None:
        """`here` are the places that are to be given back."""
        for batch in batches:
            blocks = [block for block, _ in batch]
            views = [place.view for _, place in batch]
            misses = await self.peer.read(lease, blocks, views, deadline)
            good = [block.info.key for block, miss in zip(blocks, misses, strict=True) if not miss]
            self._space.publish([here.pop(key) for key in good])
            for key in good:
                del self.left[key]
            bad = [(b, miss) for b, miss in zip(blocks, misses, strict=True) if miss]
            self.left.update((block.info.key, miss) for block, miss in bad)
            self._corrupt += [block for block, miss in bad if miss is MissReason.CORRUPT]

    def _fail(self, miss: MissReason) -> None:
        """What the peer said of a block before it failed stays its reason."""
        for key, reason in self.left.items():
            if reason is MissReason.LATE:
                self.left[key] = miss


def _batches(
    blocks: Sequence[tuple[RemoteBlock, Place]],
) -> Iterator[Sequence[tuple[RemoteBlock, Place]]]:
    batch: list[tuple[RemoteBlock, Place]] = []
    size = 0
    for block, place in blocks:
        batch.append((block, place))
        size += place.view.nbytes
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch

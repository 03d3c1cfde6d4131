"""Asking a second replica's node when the first one lets a reader wait."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from kvstore.client.deadline import Deadline
from kvstore.core.errors import KVStoreError
from kvstore.core.ids import BlockKey, BlockKeys
from kvstore.node.pull.peer import Peer
from kvstore.node.pull.space import Place, ReplicaSpace
from kvstore.node.pull.transfer import Transfer
from kvstore.tiers.base import BlockInfo
from kvstore.tiers.memory import aligned_buffer, copy_with_checksum

_LOG = logging.getLogger(__name__)

MAX_HEDGE_BYTES = 64 << 20
"""Private memory of one hedged read; the blocks behind it, from the tail, are not hedged."""


@dataclass(frozen=True, slots=True)
class _Fetched:
    """A verified copy outside of the host tier."""

    info: BlockInfo
    data: memoryview


class Hedge:
    """After `wait_s` without a block from the first peer, the second is asked too; whoever is done
    first is taken, and the other is cancelled.

        first   ────── straight into reserved slots ──────▶ publish
        second       └── into private memory ──▶ first is cancelled and has ended ──▶ slots ──▶ …

    So no slot ever has two writers: the second's bytes are copied into slots only when the first
    writes no more. The copy is the price of a hedge that wins; no other read pays it.
    """

    def __init__(self, space: ReplicaSpace, executor: Executor, wait_s: float) -> None:
        assert wait_s > 0
        self._space = space
        self._executor = executor
        self._wait_s = wait_s
        self.num_won = 0

    async def run(
        self, first: Transfer, others: Mapping[BlockKey, Sequence[Peer]], deadline: Deadline
    ) -> None:
        """Like `first.run`; `others` are the peers that also hold the blocks, best first."""
        running = asyncio.create_task(first.run(deadline))
        fetching: asyncio.Task[list[_Fetched]] | None = None
        try:
            await asyncio.wait([running], timeout=self._wait_s)
            if not running.done() and not first.delivered:
                fetching = self._ask_second(first, others, deadline)
            if fetching is not None:
                await asyncio.wait([running, fetching], return_when=asyncio.FIRST_COMPLETED)
                await self._take(first, running, fetching)
            await asyncio.wait([running])
        finally:
            await _end(running, *([fetching] if fetching else []))

    def _ask_second(
        self, first: Transfer, others: Mapping[BlockKey, Sequence[Peer]], deadline: Deadline
    ) -> asyncio.Task[list[_Fetched]] | None:
        """The peer that is next in line for the first block that has one."""
        ready = ((key, [p for p in peers if p.breaker.ready]) for key, peers in others.items())
        nexts = {key: peers[0] for key, peers in ready if peers}
        if not nexts:
            return None
        peer = next(iter(nexts.values()))
        hashes = [key.hash for key, other in nexts.items() if other is peer]
        keys = BlockKeys(first.keys.layout, hashes)
        return asyncio.create_task(_fetch(peer, keys, deadline))

    async def _take(
        self,
        first: Transfer,
        running: asyncio.Task[None],
        fetching: asyncio.Task[list[_Fetched]],
    ) -> None:
        """One of the two is done. A second that brought nothing has not won; a first that left
        something open lets the second go on."""
        if running.done() and not first.left:
            return
        blocks = await fetching
        if not blocks:
            return
        await _end(running)
        if running.cancelled():  # else a silent peer would cost every hedged read its wait
            first.peer.breaker.failed(timed_out=False)
        self.num_won += 1
        await self._place(first, [block for block in blocks if block.info.key in first.left])

    async def _place(self, first: Transfer, blocks: Sequence[_Fetched]) -> None:
        data = {block.info.key: block.data for block in blocks}
        places = self._space.reserve(block.info for block in blocks)
        loop = asyncio.get_running_loop()
        copying = loop.run_in_executor(self._executor, _copy_all, places, data)
        good: list[Place] = []
        try:
            good = await asyncio.shield(copying)
        finally:  # a thread cannot be called back: also who is cancelled waits for it
            await asyncio.wait([copying])
            kept = {place.info.key for place in good}
            self._space.give_back([place for place in places if place.info.key not in kept])
            self._space.publish(good)
        bad = {place.info.key for place in places} - kept
        for key in data.keys() - bad:
            del first.left[key]


async def _fetch(peer: Peer, keys: BlockKeys, deadline: Deadline) -> list[_Fetched]:
    """Copies of those blocks that `peer` sends; never raises but when cancelled."""
    if not peer.breaker.admit():
        return []
    try:
        async with peer.judged(deadline):
            return await _fetch_judged(peer, keys, deadline)
    except KVStoreError as error:
        _LOG.info("node %s, asked as the second: %s", peer.record.node_id, error)
        return []


async def _fetch_judged(peer: Peer, keys: BlockKeys, deadline: Deadline) -> list[_Fetched]:
    lease = await peer.acquire(keys, deadline)
    try:
        blocks, left_bytes = [], MAX_HEDGE_BYTES
        for block in lease.blocks:
            if (left_bytes := left_bytes - block.info.length_bytes) < 0:
                break
            blocks.append(block)
        views = [aligned_buffer(block.info.length_bytes) for block in blocks]
        misses = await peer.read(lease, blocks, views, deadline) if blocks else []
    finally:
        await peer.release(lease, [])
    return [
        _Fetched(block.info, view)
        for block, view, miss in zip(blocks, views, misses, strict=True)
        if miss is None
    ]


def _copy_all(places: Sequence[Place], data: Mapping[BlockKey, memoryview]) -> list[Place]:
    """Those whose copy is right."""
    return [
        place
        for place in places
        if copy_with_checksum(place.view, data[place.info.key]) == place.info.checksum
    ]


async def _end(*tasks: asyncio.Task[object]) -> None:
    """Cancel what is not done, and wait until it is."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)

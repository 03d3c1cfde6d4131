"""Three nodes, many readers, and peers that fail in every way, from a seed."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from itertools import cycle

import pytest

from kvstore.core.errors import DeadlineExceededError, UnavailableError
from kvstore.node.pull import breaker, puller
from kvstore.node.pull.peer import Peer
from kvstore.tiers.base import MissReason, TierKind

from .cluster import Cluster, put, read, until
from .conftest import BLOCK_BYTES, content, make_keys

STEPS = 40


class Sick:
    """What may happen to a read: nothing, an error, silence, wrong bytes, or bytes and then
    silence."""

    def __init__(self, monkeypatch, rng):
        self._rng = rng
        self._fates = cycle(rng.sample([*FATES, "well", "well"], len(FATES) + 2))
        self._whole = Peer.read
        self.well = False
        self.seen = set()
        sick = self

        async def read(self, lease, blocks, into, deadline):
            return await sick._read(self, lease, blocks, into, deadline)

        monkeypatch.setattr(Peer, "read", read)

    async def _read(self, peer, lease, blocks, into, deadline):
        fate = "well" if self.well else next(self._fates)
        self.seen.add(fate)
        match fate:
            case "error":
                raise UnavailableError("it went away")
            case "silence":
                await asyncio.sleep(deadline.left_s)
                return [MissReason.LATE] * len(blocks)
            case "wrong bytes":
                for view in into:
                    view[:8] = b"mistaken"
                return [MissReason.CORRUPT] * len(blocks)
        misses = await self._whole(peer, lease, blocks, into, deadline)
        if fate == "bytes, then silence":
            await asyncio.sleep(self._rng.random() * 0.05)
        return misses


FATES = ["error", "silence", "wrong bytes", "bytes, then silence"]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("way", ["shm", "zmq"])
async def test_no_wrong_byte_no_leak_and_all_is_well_again(tmp_path, monkeypatch, seed, way):
    rng = random.Random(seed)
    monkeypatch.setattr(puller, "MIN_PULL_S", 0.1)
    monkeypatch.setattr(breaker, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr("kvstore.node.pull.transfer.BATCH_BYTES", 4 * BLOCK_BYTES)
    sick = Sick(monkeypatch, rng)
    async with Cluster(tmp_path, way) as cluster:
        settings = {"host": 4 << 20, "hedge_ms": 10}
        nodes = [await cluster.start(name, **settings) for name in "abc"]
        clients = [await cluster.connect(node) for node in nodes]

        async def step():
            start = rng.randrange(40)
            keys = make_keys(*range(start, start + rng.randrange(1, 12)))
            client = rng.choice(clients)
            if rng.random() < 0.3:
                data = [memoryview(content(key)) for key in keys.hashes]
                await client.put(keys, data, deadline_s=20)
            else:
                with suppress(DeadlineExceededError):  # the client's own: the machine is busy
                    ends = await read(client, keys, deadline_s=rng.choice([0.05, 0.2, 0.5]))
                    assert all(isinstance(end, TierKind | MissReason) for end in ends)

        for _ in range(STEPS // 4):
            await asyncio.gather(*(step() for _ in range(4)))
        assert len(sick.seen) >= 3, "the test tests something"
        sick.well = True
        for node in nodes:  # calls that their clients gave up may still be ending
            await until(lambda node=node: _nothing_is_left(node))
        fresh = make_keys(*(f"fresh {i}" for i in range(4)))
        await put(clients[0], fresh)
        async with asyncio.timeout(30):
            while await read(clients[1], fresh) != [TierKind.REMOTE] * 4:
                await asyncio.sleep(0.1)  # until the breaker closes
                if await read(clients[1], fresh) == [TierKind.HOST] * 4:
                    break


def _nothing_is_left(node):
    """No pull, no lease, and no slot but those of resident blocks."""
    manager, host = node.store.manager, node.store._host
    space = manager._replication._space
    assert space.used_bytes <= space.max_bytes
    inventory = {info.key for info in host.inventory()}
    return (
        not manager._replication.puller._tasks
        and manager.statistics().leases == 0
        and host.statistics().used_bytes == len(inventory) * BLOCK_BYTES
        and manager._incoming._table.keys() == []
        and space._bytes_on_their_way == 0
        and all(key in inventory for key in space._heat._replicas)
    )

"""A second replica's node is asked when the first one lets a reader wait."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest

from kvstore.node.pull.breaker import MAX_FAILURES
from kvstore.node.pull.peer import Peer
from kvstore.testing.clock import ManualClock
from kvstore.tiers.base import MissReason, TierKind

from .cluster import Cluster, peer_statistics, put, read, until
from .conftest import make_keys

HOST, REMOTE = TierKind.HOST, TierKind.REMOTE


class Reads:
    """Notes which peers are asked, and holds up some, before or after their bytes came."""

    def __init__(self, monkeypatch):
        self.asked = []
        self.cancelled = []
        self.gates = {}
        self.after = False
        self._acquire, self.whole = Peer.acquire, Peer.read
        reads = self

        async def acquire(self, keys, deadline):
            name = str(self.record.node_id)
            reads.asked.append(name)
            return await reads.noting_the_end(name, reads._acquire(self, keys, deadline))

        async def read(self, lease, blocks, into, deadline):
            name = str(self.record.node_id)
            return await reads.noting_the_end(
                name, reads._read(self, lease, blocks, into, deadline)
            )

        monkeypatch.setattr(Peer, "acquire", acquire)
        monkeypatch.setattr(Peer, "read", read)

    async def noting_the_end(self, name, call):
        try:
            return await call
        except asyncio.CancelledError:
            self.cancelled.append(name)
            raise

    async def _read(self, peer, *args):
        gate = self.gates.get(str(peer.record.node_id))
        misses = await self.whole(peer, *args) if self.after else None
        if gate is not None:
            await gate.wait()
        return misses or await self.whole(peer, *args)

    def hold(self, name):
        self.gates[name] = asyncio.Event()


@asynccontextmanager
async def three(tmp_path, way="shm", **settings):
    """(client of a, node a, first peer asked, second): b and c hold the same eight blocks."""
    async with Cluster(tmp_path, way) as cluster:
        node = await cluster.start("a", **{"hedge_ms": 20} | settings)
        clients = [await cluster.connect(await cluster.start(name)) for name in "bc"]
        for client in clients:
            await put(client, make_keys(*range(8)))
        yield await cluster.connect(node), node


@pytest.fixture
def reads(monkeypatch):
    return Reads(monkeypatch)


KEYS = make_keys(*range(8))


def no_slot_left(node):
    host = node.store._host
    return host.statistics().used_bytes == len(host.inventory()) * (64 << 10)


@pytest.mark.parametrize("way", ["shm", "zmq", "grpc"])
@pytest.mark.parametrize("after", [False, True], ids=["before its bytes", "after its bytes"])
async def test_a_hedge_wins_over_a_peer_that_hangs(tmp_path, reads, way, after):
    async with three(tmp_path, way) as (a, node):
        reads.after = after
        reads.hold("b")
        assert await read(a, KEYS) == [REMOTE] * 8
        assert reads.asked == ["b", "c"]
        assert reads.cancelled == ["b"], "nobody else writes when the copies go in"
        assert node.store.manager._replication.puller._hedge.num_won == 1
        assert await read(a, KEYS) == [HOST] * 8
        await until(lambda: no_slot_left(node))
        assert (await a.statistics()).replica_bytes == 8 * (64 << 10)
        assert {p.breaker for p in (await peer_statistics(a)).values()} == {"closed"}


async def test_a_hedge_loses_against_a_first_that_comes_after_all(tmp_path, reads):
    async with three(tmp_path) as (a, node):
        reads.hold("b")
        reads.hold("c")
        reading = asyncio.create_task(read(a, KEYS))
        await until(lambda: reads.asked == ["b", "c"])
        reads.gates["b"].set()
        assert await reading == [REMOTE] * 8
        await until(lambda: reads.cancelled == ["c"])
        assert node.store.manager._replication.puller._hedge.num_won == 0
        await until(lambda: no_slot_left(node))
        assert (await peer_statistics(a))["b"].blocks_pulled == 8


async def test_a_peer_that_loses_again_and_again_is_not_asked_any_more(tmp_path, reads):
    async with three(tmp_path) as (a, node):
        reads.hold("b")
        for i in range(MAX_FAILURES):
            assert await read(a, KEYS[i : i + 1]) == [REMOTE]
        assert (await peer_statistics(a))["b"].breaker == "open"
        reads.asked.clear()
        clock = ManualClock()
        node.store.manager._replication._peers._peers["b"].breaker._clock = clock
        assert await read(a, KEYS[7:8]) == [REMOTE]
        assert reads.asked == ["c"]


async def test_no_hedge_is_asked_for_what_comes_in_time(tmp_path, reads):
    async with three(tmp_path, hedge_ms=10_000) as (a, _):
        assert await read(a, KEYS) == [REMOTE] * 8
        assert reads.asked == ["b"]


async def test_without_the_setting_a_reader_waits(tmp_path, reads):
    async with three(tmp_path, hedge_ms=0) as (a, _):
        reads.hold("b")
        assert set(await read(a, KEYS, deadline_s=0.3)) == {MissReason.LATE}
        assert reads.asked == ["b"]


async def test_a_second_that_has_nothing_does_not_win(tmp_path, reads):
    async with Cluster(tmp_path) as cluster:
        nodes = [await cluster.start(name, hedge_ms=20) for name in "abc"]
        a, b = [await cluster.connect(node) for node in nodes[:2]]
        await put(b, KEYS)
        cluster.announce("c", KEYS)
        reads.hold("b")
        reading = asyncio.create_task(read(a, KEYS))
        acquired = nodes[2].store.manager._leases.misses
        await until(lambda: sum(acquired.values()) == 8)
        reads.gates["b"].set()
        assert await reading == [REMOTE] * 8
        assert reads.asked == ["b", "c"]
        assert reads.cancelled == []


async def test_a_first_that_fails_leaves_the_hedge_to_go_on(tmp_path, reads):
    async with three(tmp_path) as (a, _):
        reads.hold("b")
        reads.hold("c")
        reading = asyncio.create_task(read(a, KEYS))
        await until(lambda: reads.asked == ["b", "c"])

        whole = reads.whole

        async def fails_for_b(peer, *args):
            if str(peer.record.node_id) == "b":
                return [MissReason.FAILED] * 8
            return await whole(peer, *args)

        reads.whole = fails_for_b
        reads.gates["b"].set()
        await asyncio.sleep(0.01)
        reads.gates["c"].set()
        assert await reading == [REMOTE] * 8
        assert reads.asked == ["b", "c"], "the one that was asked already, not once more"

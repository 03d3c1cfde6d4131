"""A peer that is dead, silent, slow or wrong costs at most a miss, with its one reason."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys

import pytest
import zmq
import zmq.asyncio

from kvstore.core.errors import DeadlineExceededError
from kvstore.core.ids import NodeId
from kvstore.directory.base import NodeRecord
from kvstore.node.host_id import this_host
from kvstore.tiers.base import MissReason, TierKind

from .cluster import WAYS, Cluster, pair, peer_statistics, put, read, record_for, until
from .conftest import content, make_keys

HOST, REMOTE = TierKind.HOST, TierKind.REMOTE
CORRUPT, EVICTED, FAILED, LATE, NO_SPACE = (
    MissReason.CORRUPT,
    MissReason.EVICTED,
    MissReason.FAILED,
    MissReason.LATE,
    MissReason.NO_SPACE,
)


def record(node_id, zmq_endpoint="", grpc_address="", host_id="elsewhere"):
    return NodeRecord(NodeId(node_id), 1, host_id, zmq_endpoint, grpc_address, "", "")


async def replica_bytes(client):
    return (await client.statistics()).replica_bytes


@pytest.fixture
async def black_hole():
    """A socket that takes every message and answers none: (endpoint, messages so far)."""
    context = zmq.asyncio.Context()
    router = context.socket(zmq.ROUTER)
    port = router.bind_to_random_port("tcp://127.0.0.1")
    messages = []

    async def swallow():
        while True:
            messages.append(await router.recv_multipart())

    task = asyncio.create_task(swallow())
    yield f"tcp://127.0.0.1:{port}", messages
    task.cancel()
    await asyncio.wait([task])
    context.destroy(linger=0)


async def test_a_black_hole_costs_one_deadline_and_then_nothing(tmp_path, black_hole):
    endpoint, messages = black_hole
    async with Cluster(tmp_path) as cluster:
        client = await cluster.connect(await cluster.start("a"))
        cluster.records["hole"] = record("hole", endpoint)
        keys = make_keys(*range(100))
        cluster.announce("hole", keys)
        assert await read(client, keys[:1], deadline_s=0.1) == [LATE]
        await until(lambda: messages)
        peer = (await peer_statistics(client))["hole"]
        while peer.breaker == "closed":
            await asyncio.sleep(0.01)
            peer = (await peer_statistics(client))["hole"]
        asked = len(messages)
        for i in range(1, 100):
            assert await read(client, keys[i : i + 1], deadline_s=0.1) == [FAILED]
        assert len(messages) == asked, "while the breaker is open, nothing is asked"
        assert (await peer_statistics(client))["hole"].failures == 1


async def test_a_peer_that_nobody_listens_for_fails(tmp_path):
    async with Cluster(tmp_path) as cluster:
        client = await cluster.connect(await cluster.start("a"))
        cluster.records["gone"] = record("gone", "tcp://127.0.0.1:1", "127.0.0.1:1")
        cluster.records["odd"] = record("odd", "ipc:///elsewhere")
        keys = make_keys("a", "b")
        cluster.announce("gone", keys[:1])
        cluster.announce("odd", keys[1:])
        reasons = await read(client, keys, deadline_s=2)
        assert reasons[0] in (LATE, FAILED)
        assert reasons[1] is FAILED
        assert (await peer_statistics(client))["odd"].failures == 1


async def test_another_replica_is_asked_when_the_first_peer_fails(tmp_path):
    async with pair(tmp_path, "zmq") as (cluster, a, b, *_):
        keys = make_keys("a")
        await put(b, keys)
        cluster.records["bad"] = record("bad", "nonsense", host_id=this_host())
        cluster.announce("bad", keys)
        assert await read(a, keys) == [REMOTE]
        assert (await peer_statistics(a))["bad"].failures == 1, "it was nearer, so it was first"


async def test_a_replica_that_is_gone_when_asked_for_is_evicted(tmp_path):
    async with pair(tmp_path) as (cluster, a, b, *_):
        keys = make_keys("here", "gone")
        await put(b, keys[:1])
        cluster.announce("b", keys)
        assert await read(a, keys) == [REMOTE, EVICTED]
        peer = (await peer_statistics(a))["b"]
        assert (peer.failures, peer.breaker) == (0, "closed"), "no fault of the peer's"


@pytest.mark.parametrize("way", WAYS)
async def test_corrupt_bytes_at_the_peer_are_a_miss_and_are_reported_to_it(tmp_path, way):
    async with pair(tmp_path, way) as (_, a, b, _, node_b):
        keys = make_keys(*range(3))
        await put(b, keys)
        host = node_b.store._host
        (resident,) = host.acquire(list(keys)[1:2])
        host.view(resident.slot)[5] ^= 1
        host.release(list(keys)[1:2])
        assert await read(a, keys) == [REMOTE, CORRUPT, REMOTE]
        await until(lambda: len(host.inventory()) == 2)
        assert await read(b, keys) == [HOST, CORRUPT, HOST], "the peer saw for itself"
        assert await read(a, keys) == [HOST, MissReason.NEVER_STORED, HOST]
        remote = {tier.tier: tier for tier in (await a.statistics()).tiers}[REMOTE]
        assert remote.corruptions == 1
        assert await replica_bytes(a) == 2 * (64 << 10)


async def test_bytes_that_are_corrupted_on_the_wire_are_a_miss_and_the_replica_stays(
    tmp_path, monkeypatch
):
    from kvstore.node.pull import remote

    copy, once = remote.copy_with_checksum, []

    def corrupting(into, data):
        crc = copy(into, data)
        if not once:
            once.append(into)
            crc ^= 1
        return crc

    async with pair(tmp_path, "shm") as (_, a, b, node_a, node_b):
        keys = make_keys(*range(3))
        await put(b, keys)
        monkeypatch.setattr(remote, "copy_with_checksum", corrupting)
        assert await read(a, keys) == [CORRUPT, REMOTE, REMOTE]
        await until(lambda: not node_a.store.manager._replication.puller._tasks)
        assert await read(b, keys) == [HOST] * 3, "it was told, looked, and found it good"
        assert node_b.store.manager.statistics().tiers[0].corruptions == 0
        assert await read(a, keys) == [REMOTE, HOST, HOST]


async def test_a_corrupt_replica_is_read_from_another_peer(tmp_path):
    async with Cluster(tmp_path) as cluster:
        nodes = [await cluster.start(name) for name in "abc"]
        a, b, c = [await cluster.connect(node) for node in nodes]
        keys = make_keys("a")
        await put(b, keys)
        await put(c, keys)
        first = nodes[1]
        (resident,) = first.store._host.acquire(list(keys))
        first.store._host.view(resident.slot)[5] ^= 1
        first.store._host.release(list(keys))
        assert await read(a, keys) == [REMOTE]


@pytest.mark.parametrize("way", ["shm", "zmq"])
async def test_a_slow_peer_is_late_for_this_reader_and_there_for_the_next(tmp_path, way):
    async with pair(tmp_path, way) as (_, a, b, node_a, node_b):
        await put(b, make_keys("warm", "a"))
        assert await read(a, make_keys("warm")) == [REMOTE]
        gate = asyncio.Event()
        acquire = node_b.store.manager._leases.acquire

        async def slow(*args, **kwargs):
            await gate.wait()
            return await acquire(*args, **kwargs)

        node_b.store.manager._leases.acquire = slow
        node_b.store.manager._leases.acquire_now = lambda *_: None
        assert await read(a, make_keys("a"), deadline_s=0.05) == [LATE]
        gate.set()
        await until(lambda: not node_a.store.manager._replication.puller._tasks)
        assert await read(a, make_keys("a")) == [HOST]


async def test_a_peer_that_answers_nonsense_fails(tmp_path, monkeypatch):
    async with pair(tmp_path) as (_, a, b, _, node_b):
        await put(b, make_keys("a"))
        service = node_b.store.service

        class Fewer:
            """Of a lease, says less than was asked."""

            def __getattr__(self, name):
                return getattr(manager, name)

            async def acquire(self, *args, **kwargs):
                acquired = await manager.acquire(*args, **kwargs)
                return type(acquired)(acquired.lease, [])

            def acquire_now(self, *_):
                return None

        manager, service._manager = service._manager, Fewer()
        assert await read(a, make_keys("a")) == [FAILED]
        service._manager = manager
        assert await read(a, make_keys("a")) == [REMOTE]


@pytest.mark.parametrize("way", WAYS)
async def test_stopping_in_the_middle_of_a_pull_leaves_no_slot_behind(tmp_path, way, monkeypatch):
    async with pair(tmp_path, way) as (_, a, b, node_a, _):
        keys = make_keys(*range(16))
        await put(b, keys)
        from kvstore.node.pull.peer import Peer

        whole, began = Peer.read, asyncio.Event()

        async def stuck(self, lease, blocks, into, deadline):
            await whole(self, lease, blocks, into, deadline)
            began.set()
            await asyncio.sleep(3600)

        monkeypatch.setattr(Peer, "read", stuck)
        reading = asyncio.create_task(read(a, keys))
        await began.wait()
        host = node_a.store._host
        assert host.statistics().used_bytes > 0
        await node_a.store.manager._incoming.stop()
        assert set(await reading) == {LATE}
        assert host.statistics().used_bytes == 0
        assert node_a.store.manager.statistics().replica_bytes == 0


async def test_a_pull_that_does_not_fit_has_no_space_from_its_tail(tmp_path):
    async with pair(tmp_path, host=4 << 20, replica_share=0.25) as (_, a, b, *_):
        keys = make_keys(*range(20))
        await put(b, keys)
        assert await read(a, keys) == [REMOTE] * 16 + [NO_SPACE] * 4
        assert await replica_bytes(a) == 1 << 20


SERVE = """
import asyncio, sys
from kvstore.node.config import NodeConfig
from kvstore.node.daemon import serve
config = NodeConfig(node_id="b", host=64 << 20, arena_folder=sys.argv[1])
def ready(node):
    print(node.zmq_endpoint, node.grpc_address, flush=True)
asyncio.run(serve(config, ready))
"""


@pytest.fixture
async def peer_process(tmp_path):
    """(process, its zmq endpoint, its gRPC address)"""
    folder = tmp_path / "peer"
    folder.mkdir()
    child = subprocess.Popen(  # noqa: ASYNC220 - starting does not block
        [sys.executable, "-c", SERVE, folder], stdout=subprocess.PIPE, text=True
    )
    try:
        line = await asyncio.to_thread(child.stdout.readline)
        yield child, *line.split()
    finally:
        child.kill()
        child.communicate()


@pytest.mark.parametrize("way", WAYS)
async def test_a_peer_in_another_process_is_read_and_then_killed(tmp_path, peer_process, way):
    from kvstore.client.aio import Client

    child, zmq_endpoint, grpc_address = peer_process
    async with Cluster(tmp_path) as cluster:
        a = await cluster.connect(await cluster.start("a"))
        cluster.records["b"] = record_for(
            way, record("b", zmq_endpoint, grpc_address, host_id=this_host())
        )
        keys = make_keys(*range(8))
        b = await Client.connect(zmq_endpoint)
        await b.put(keys, [memoryview(content(h)) for h in keys.hashes])
        cluster.announce("b", keys)
        assert await read(a, keys[:4]) == [REMOTE] * 4
        assert (await peer_statistics(a))["b"].transport == way
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        reasons = await read(a, keys, deadline_s=1)
        assert reasons[:4] == [HOST] * 4
        assert set(reasons[4:]) <= {LATE, FAILED}
        await b.close()


async def test_a_peer_that_is_killed_while_it_sends_costs_misses_and_no_wrong_byte(
    tmp_path, peer_process, monkeypatch
):
    from kvstore.client.aio import Client
    from kvstore.node.pull.peer import Peer

    child, zmq_endpoint, grpc_address = peer_process
    monkeypatch.setattr("kvstore.node.pull.transfer.BATCH_BYTES", 256 << 10)
    whole, count = Peer.read, 0

    async def kills_later(self, lease, blocks, into, deadline):
        nonlocal count
        count += 1
        if count == 4:
            child.kill()
        return await whole(self, lease, blocks, into, deadline)

    monkeypatch.setattr(Peer, "read", kills_later)
    async with Cluster(tmp_path) as cluster:
        node = await cluster.start("a", host=64 << 20)
        a = await cluster.connect(node)
        cluster.records["b"] = record("b", zmq_endpoint, grpc_address)
        keys = make_keys(*range(200))
        async with await Client.connect(zmq_endpoint) as b:
            await b.put(keys, [memoryview(content(h)) for h in keys.hashes])
            cluster.announce("b", keys)
            reasons = await read(a, keys, deadline_s=2)
            count_came = reasons.count(REMOTE)
            assert count_came >= 4, "the first batches came before the end"
            assert set(reasons) <= {REMOTE, LATE, FAILED}
        await until(lambda: not node.store.manager._replication.puller._tasks)
        here = {info.key for info in node.store._host.inventory()}
        assert len(here) == await replica_bytes(a) / (64 << 10) >= count_came


async def test_the_way_to_a_peer_is_logged_once(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="kvstore.node.pull.peer")
    async with pair(tmp_path) as (_, a, b, *_):
        await put(b, make_keys("a", "b"))
        await read(a, make_keys("a"))
        await read(a, make_keys("b"))
    lines = [r.getMessage() for r in caplog.records if "come by" in r.getMessage()]
    assert len(lines) == 1
    assert "node b come by shm" in lines[0]


async def test_a_peer_without_a_connection_says_so_in_time(tmp_path, black_hole):
    from kvstore.client.deadline import Deadline
    from kvstore.node.pull.peer import Peer, PullerIdentity
    from kvstore.testing.clock import ManualClock

    peer = Peer(record("hole", black_hole[0]), PullerIdentity(NodeId("a"), "x"), ManualClock())
    with pytest.raises(DeadlineExceededError):
        await peer.acquire(make_keys("a"), Deadline(0.05))
    await peer.close()

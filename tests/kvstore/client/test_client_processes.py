"""Clients that are other processes: they share, they die, they stall."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys

import pytest

from .conftest import buffers, contents, make_keys, until

COMMON = """
import asyncio, hashlib, random, sys
from kvstore.client.sync import SyncClient
from kvstore.core.errors import KVStoreError
from kvstore.core.ids import BlockHash, BlockKeys, LayoutFingerprint

def make_keys(*names):
    hashes = [BlockHash(hashlib.sha256(str(name).encode()).digest()) for name in names]
    return BlockKeys(LayoutFingerprint(b"test layout 0123"), hashes)

def contents(keys, length):
    return [memoryview((h * (length // 32 + 1))[:length]) for h in keys.hashes]

client = SyncClient.connect(sys.argv[1], client_name=sys.argv[2])
"""

WRITER = """
reservation = client.reserve(make_keys("slow"), 1 << 20)
print("reserved", flush=True)
sys.stdin.readline()
view = reservation.blocks[0].view
view[:] = b"S" * len(view)
print("written", flush=True)
try:
    reservation.commit()
except KVStoreError as error:
    print(type(error).__name__, flush=True)
reservation.abort()
print("aborted", flush=True)
sys.stdin.readline()
"""

WORKER = """
LENGTH = 100_000
seeded = random.Random(int(sys.argv[2]))
hits = 0
for _ in range(150):
    keys = make_keys(*seeded.sample(range(120), 6))
    wanted = contents(keys, LENGTH)
    into = [memoryview(bytearray(LENGTH)) for _ in wanted]
    misses = client.get(keys, into, deadline_s=10)
    for i in range(len(keys)):
        if i not in misses:
            assert into[i] == wanted[i], "wrong bytes"
            hits += 1
    client.put(keys, wanted, deadline_s=10)
client.close()
print(hits, flush=True)
"""


@pytest.fixture
def spawn():
    children = []

    def spawn(script, *args):
        child = subprocess.Popen(
            [sys.executable, "-c", COMMON + script, *map(str, args)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        children.append(child)
        return child

    yield spawn
    for child in children:
        child.kill()
        child.communicate()


async def _line(child):
    return (await asyncio.to_thread(child.stdout.readline)).strip()


async def test_processes_that_share_a_small_store_never_see_wrong_bytes(make_node, spawn, tmp_path):
    node = await make_node(host=4 << 20, disk=8 << 20, disk_path=tmp_path / "disk")
    workers = [spawn(WORKER, node.zmq_endpoint, seed) for seed in (1, 2)]
    workers.append(spawn(WORKER, f"grpc://{node.grpc_address}", 3))
    hits = [int(await _line(worker)) for worker in workers]
    assert [await asyncio.to_thread(worker.wait) for worker in workers] == [0, 0, 0]
    assert all(hits)
    statistics = node.store.manager.statistics()
    assert (statistics.sessions, statistics.leases, statistics.reservations) == (0, 0, 0)


async def test_the_space_of_a_killed_writer_comes_back(make_node, connect, spawn):
    node = await make_node()
    writer = spawn(WRITER, node.zmq_endpoint, "writer")
    assert await _line(writer) == "reserved"
    async with connect(node) as client:
        assert (await client.statistics()).tiers[0].used_bytes >= 1 << 20
        writer.kill()

        async def free():
            return (await client.statistics()).tiers[0].used_bytes == 0

        await until(free, "long before its lease time of 10 s is over")


async def test_the_slot_of_a_stalled_writer_is_not_reused_until_it_says_so(
    make_node, connect, spawn
):
    node = await make_node(host=4 << 20, lease_ttl_ms=300)
    writer = spawn(WRITER, node.zmq_endpoint, "writer")
    assert await _line(writer) == "reserved"
    os.kill(writer.pid, signal.SIGSTOP)
    async with connect(node) as client:

        async def orphaned():
            return (await client.statistics()).orphaned_blocks == 1

        await until(orphaned, "its session ended")
        keys = make_keys(*range(8))
        data = contents(keys, 1 << 20)
        stored = await client.put(keys, data)
        assert len(stored) == 3, "one of four megabytes is kept back"
        os.kill(writer.pid, signal.SIGCONT)
        writer.stdin.write("write\n")
        writer.stdin.flush()
        assert [await _line(writer) for _ in range(3)] == [
            "written",
            "ReservationExpiredError",
            "aborted",
        ]
        into = buffers(8, 1 << 20)
        await client.get(keys, into)
        assert [into[i] for i in stored] == [data[i] for i in stored]
        assert len(await client.match(make_keys("slow"))) == 0

        async def free():
            return (await client.statistics()).orphaned_blocks == 0

        await until(free, "it said that it writes no more")

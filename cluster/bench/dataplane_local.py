"""`kvstore bench dataplane` on one host: a node in another process, blocks in shared memory."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

from cluster.bench.alternate import best_rates
from cluster.bench.case import BenchOptions, Case
from cluster.bench.ceilings import BLOCK_BYTES, NUM_BLOCKS, memcpy, random_blocks, touched_blocks
from cluster.bench.spawned_node import spawned_node
from kvstore.client.aio import Client
from kvstore.client.work import THREADS
from kvstore.core.ids import BlockHash, BlockKeys, LayoutFingerprint

DEADLINE_S = 20.0
HOST_BYTES = 4 * NUM_BLOCKS * BLOCK_BYTES
SMALL_BYTES = 4096
VIEW_BATCH = 256
VIEW_TURNS = 20
MEMCPY = "memcpy in the same blocks, one thread"


def bench_keys(name: object, size: int) -> BlockKeys:
    hashes = [BlockHash(hashlib.sha256(f"{name}/{i}".encode()).digest()) for i in range(size)]
    return BlockKeys(LayoutFingerprint(b"bench dataplane!"), hashes)


class LocalClient:
    """A client with an event loop of its own, for works that are timed one after another."""

    def __init__(self, runner: asyncio.Runner, client: Client) -> None:
        self.client = client
        self._runner = runner
        self._numbers = count()

    def fresh_keys(self, size: int) -> BlockKeys:
        """Never used before."""
        return bench_keys(next(self._numbers), size)

    def run(self, work: Callable[[], Coroutine[Any, Any, object]]) -> Callable[[], object]:
        return lambda: self._runner.run(work())


@contextmanager
def local_client(options: BenchOptions, *, shared_memory: bool = True) -> Iterator[LocalClient]:
    with spawned_node(options.folder, host=HOST_BYTES) as endpoint, asyncio.Runner() as runner:
        client = runner.run(
            Client.connect(endpoint, client_name="bench", shared_memory=shared_memory)
        )
        try:
            yield LocalClient(runner, client)
        finally:
            runner.run(client.close())


def dataplane_local(options: BenchOptions) -> Iterator[Case]:
    """Get, put and views of one client. Raises ConfigurationError if the node does not start."""
    with local_client(options) as local:
        yield _get_same_host(local)
        yield _views(local)
        yield _put_same_host(local)


def _get_same_host(local: LocalClient) -> Case:
    data, into = random_blocks(), touched_blocks()
    get = getting(local, data, into)
    rates = best_rates(
        NUM_BLOCKS * BLOCK_BYTES / 1e9,
        {"get": get, "memcpy": lambda: memcpy(into, data)},
    )
    return Case(
        "get_same_host_2mib",
        rates["get"],
        "GB/s",
        rates["memcpy"],
        MEMCPY,
        f"the same {NUM_BLOCKS} blocks again and again into the caller's buffers, fenced by "
        f"generation; copied by {THREADS} threads",
    )


def getting(
    local: LocalClient, data: list[memoryview], into: list[memoryview]
) -> Callable[[], object]:
    """A work that gets stored blocks; each copy is compared once, here."""
    keys = local.fresh_keys(len(data))

    async def get() -> None:
        misses = await local.client.get(keys, into, deadline_s=DEADLINE_S)
        assert not misses

    local.run(lambda: local.client.put(keys, data, deadline_s=DEADLINE_S))()
    work = local.run(get)
    work()
    assert into == data
    return work


def _put_same_host(local: LocalClient) -> Case:
    data, into = random_blocks(), touched_blocks()
    put = putting(local, data)
    for _ in range(HOST_BYTES // (NUM_BLOCKS * BLOCK_BYTES) + 1):
        put()  # so that the arena's memory is there, as it is in a node that has run for a while
    rates = best_rates(
        NUM_BLOCKS * BLOCK_BYTES / 1e9,
        {"put": put, "memcpy": lambda: memcpy(into, data)},
    )
    return Case(
        "put_same_host_2mib",
        rates["put"],
        "GB/s",
        rates["memcpy"],
        MEMCPY,
        f"batches of {NUM_BLOCKS} new blocks, with their checksums; every one evicts another; "
        f"copied by {THREADS} threads",
    )


def putting(local: LocalClient, data: list[memoryview]) -> Callable[[], object]:
    """A work that puts blocks under new keys each time."""

    async def put() -> None:
        keys = local.fresh_keys(len(data))
        stored = await local.client.put(keys, data, deadline_s=DEADLINE_S)
        assert len(stored) == len(data)

    return local.run(put)


def _views(local: LocalClient) -> Case:
    keys = local.fresh_keys(VIEW_BATCH)
    data = random_blocks(VIEW_BATCH, SMALL_BYTES)
    local.run(lambda: local.client.put(keys, data, deadline_s=DEADLINE_S))()

    async def view() -> None:
        for _ in range(VIEW_TURNS):
            async with await local.client.acquire(keys, deadline_s=DEADLINE_S) as lease:
                assert len([block.view for block in lease.found]) == VIEW_BATCH

    rates = best_rates(VIEW_BATCH * VIEW_TURNS, {"view": local.run(view)})
    return Case(
        "view_same_host_blocks_per_s",
        rates["view"],
        "blocks/s",
        note=f"acquire, a view of each block, release; batches of {VIEW_BATCH}",
    )

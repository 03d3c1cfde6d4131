"""`kvstore bench dataplane`: blocks from node to node, over the network.

The measuring process does what a node does that pulls from another one, or pushes to it: it has an
arena of its own, a session with the other node that shares no memory, and the bulk channel.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf.message import Message

from cluster.bench.alternate import best_rates
from cluster.bench.case import BenchOptions, Case
from cluster.bench.ceilings import (
    BLOCK_BYTES,
    GROUP,
    NUM_BLOCKS,
    random_blocks,
    raw_zmq_tcp,
    touched_blocks,
)
from cluster.bench.spawned_node import spawned_node
from kvstore.client.connection import Connection, Session
from kvstore.client.deadline import Deadline
from kvstore.client.endpoint import open_channel
from kvstore.client.loop_thread import LoopThread
from kvstore.core.checksum import checksum
from kvstore.core.errors import KVStoreError
from kvstore.core.ids import BLOCK_HASH_BYTES
from kvstore.tiers.host.arena import Arena
from kvstore.transports.base import BulkRead, BulkWrite
from kvstore.wire.v1 import block_pb2, node_pb2

R = TypeVar("R", bound=Message)

DEADLINE_S = 20.0
AGAINST = "raw ZeroMQ over TCP, no protocol and no checksum"
TOTAL_BYTES = NUM_BLOCKS * BLOCK_BYTES
BATCH = 2 * GROUP
"""Blocks of one reservation or lease. All batches are under way at once, as those of the requests
that a node serves are: bytes pass while another batch is reserved or committed."""
HOST_BYTES = 2 * TOTAL_BYTES
"""Of the other node: full after two rounds, so that its memory is touched before it is timed."""
LAYOUT = b"dataplane remote"
ROUNDS = 24
"""Each is short and keeps all cores busy, here and in the other process, so few meet a calm spell
of the machine."""


def dataplane_remote(options: BenchOptions) -> Iterator[Case]:
    """Both directions, checksum verified where the bytes arrive."""
    settings = {"zmq_endpoint": "tcp://127.0.0.1:0", "host": HOST_BYTES}
    with (
        raw_zmq_tcp() as raw,
        spawned_node(options.folder, "remote", **settings) as endpoint,
        _peer(endpoint, options.folder) as peer,
    ):
        touched = touched_blocks()
        works = {"raw": lambda: raw.fetch(touched), "put": peer.put, "get": peer.get}
        peer.put()
        rates = best_rates(TOTAL_BYTES / 1e9, works, ROUNDS)
    for name in ("get", "put"):
        note = f"{NUM_BLOCKS} blocks in batches of {BATCH}, all under way at once"
        yield Case(f"{name}_remote_2mib", rates[name], "GB/s", rates["raw"], AGAINST, note)


@contextmanager
def _peer(endpoint: str, folder: Path) -> Iterator[_Peer]:
    loop = LoopThread("bench-remote")
    arena = Arena(folder, 2 * TOTAL_BYTES)
    try:
        connection, session = loop.run(_connect(endpoint))
        try:
            yield _Peer(loop, connection, session, arena)
        finally:
            loop.run(connection.close())
    finally:
        arena.close()
        loop.stop()


async def _connect(endpoint: str) -> tuple[Connection, Session]:
    connection = Connection(open_channel(endpoint), endpoint, "bench", [], shared_memory=False)
    return connection, await connection.session(Deadline(DEADLINE_S))


class _Peer:
    """Blocks of an arena: the first GROUP are sent, the others are filled.

    The same GROUP blocks are sent again and again, and fill NUM_BLOCKS, for so the ceiling does:
    both find what they send in the same caches.
    """

    def __init__(
        self, loop: LoopThread, connection: Connection, session: Session, arena: Arena
    ) -> None:
        views = [
            arena.view(arena.data_offset + i * BLOCK_BYTES, BLOCK_BYTES)
            for i in range(GROUP + NUM_BLOCKS)
        ]
        self._ours, self._theirs = views[:GROUP], views[GROUP:]
        for view, block in zip(self._ours, random_blocks(GROUP), strict=True):
            view[:] = block
        self._checksums = [checksum(block) for block in self._ours]
        self._keys = _new_keys()
        self._loop = loop
        self._connection = connection
        self._session = session
        assert session.bulk is not None
        self._bulk = session.bulk

    def put(self) -> None:
        """New blocks each time; older ones of the other node make room for them."""
        self._keys = _new_keys()
        self._loop.run(self._put_all())

    def get(self) -> None:
        """The blocks put last."""
        self._loop.run(self._get_all())

    async def _put_all(self) -> None:
        await asyncio.gather(*map(self._put, self._keys))

    async def _get_all(self) -> None:
        targets = [self._theirs[i : i + BATCH] for i in range(0, NUM_BLOCKS, BATCH)]
        await asyncio.gather(*map(self._get, self._keys, targets))

    async def _put(self, keys: block_pb2.BlockKeys) -> None:
        reserve = node_pb2.ReserveRequest(keys=keys, block_bytes=BLOCK_BYTES)
        reserved = await self._call("Reserve", reserve, node_pb2.ReserveResponse)
        if len(reserved.offsets) < BATCH:
            raise KVStoreError(f"no room for {BATCH} blocks: {list(reserved.outcomes)}")
        writes = [BulkWrite(i, self._ours[i % GROUP]) for i in range(BATCH)]
        await self._bulk.write(
            self._session.id, reserved.reservation_id, writes, deadline_s=DEADLINE_S
        )
        commit = node_pb2.CommitRequest(
            reservation_id=reserved.reservation_id,
            indices=range(BATCH),
            checksums=self._checksums * (BATCH // GROUP),
            lengths_bytes=[BLOCK_BYTES] * BATCH,
        )
        await self._call("Commit", commit, node_pb2.CommitResponse)

    async def _get(self, keys: block_pb2.BlockKeys, targets: list[memoryview]) -> None:
        acquire = node_pb2.AcquireRequest(keys=keys, wait_ms=1_000)
        leased = await self._call("Acquire", acquire, node_pb2.AcquireResponse)
        columns = zip(range(BATCH), targets, leased.checksums, strict=True)
        reads = [BulkRead(index, target, crc) for index, target, crc in columns]
        misses = await self._bulk.read(
            self._session.id, leased.lease_id, reads, deadline_s=DEADLINE_S
        )
        release = node_pb2.ReleaseRequest(lease_ids=[leased.lease_id])
        await self._call("Release", release, node_pb2.ReleaseResponse)
        if any(miss is not None for miss in misses):
            raise KVStoreError(f"blocks were missed: {misses}")

    async def _call(self, method: str, request: Any, response_type: type[R]) -> R:
        response, _ = await self._connection.call(
            method, request, response_type, Deadline(DEADLINE_S)
        )
        return response


def _new_keys() -> list[block_pb2.BlockKeys]:
    """Of each batch."""
    return [
        block_pb2.BlockKeys(
            layout_fingerprint=LAYOUT, block_hashes=secrets.token_bytes(BATCH * BLOCK_HASH_BYTES)
        )
        for _ in range(NUM_BLOCKS // BATCH)
    ]

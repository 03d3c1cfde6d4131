"""Another node, as its client sees it: leases on its blocks, and their bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, Self

from kvstore.client.connection import Connection, Session
from kvstore.client.deadline import Deadline
from kvstore.client.endpoint import open_channel
from kvstore.core.errors import KVStoreError, ProtocolError
from kvstore.core.ids import BlockKey, BlockKeys, pack_hashes
from kvstore.tiers.base import BlockInfo, MissReason
from kvstore.tiers.host.arena import Arena
from kvstore.tiers.memory import copy_with_checksum
from kvstore.transports.base import BulkRead
from kvstore.transports.security.keys import NO_CLIENT_KEYS, ClientKeys
from kvstore.wire.v1 import block_pb2, node_pb2

TransportName = Literal["shm", "zmq", "grpc"]

WAIT_SHARE = 0.8
"""Part of a deadline that the peer may take to bring blocks up from its disk."""
RELEASE_S = 0.25


@dataclass(frozen=True, slots=True)
class RemoteBlock:
    """One block under a lease of the peer's."""

    index: int
    """Counts over the blocks found by the lease."""
    info: BlockInfo
    offset: int
    generation: int


@dataclass(frozen=True, slots=True)
class RemoteLease:
    session: Session
    id: int
    blocks: Sequence[RemoteBlock]
    misses: dict[BlockKey, MissReason]
    """As this node's readers are told of them."""


class RemoteNode:
    """A session with one peer. `connect` → `close`; owned by one event loop.

    Every verb ends within its deadline, or raises a KVStoreError. A peer that restarted at the same
    address is found again by itself.
    """

    def __init__(self, connection: Connection, transport: TransportName) -> None:
        """Use `connect`."""
        self._connection = connection
        self.transport = transport
        """How its bytes come, since the last `acquire`."""

    @classmethod
    async def connect(
        cls,
        endpoint: str,
        own_name: str,
        *,
        keys: ClientKeys = NO_CLIENT_KEYS,
        shared_memory: bool,
        deadline: Deadline,
    ) -> Self:
        """`shared_memory`: map its arena if that can be done; else its bytes come over the
        network."""
        connection = Connection(
            open_channel(endpoint, keys),
            endpoint,
            own_name,
            [],
            peer=True,
            shared_memory=shared_memory,
            keys=keys,
        )
        try:
            session = await connection.session(deadline)
        except BaseException:
            await connection.close()
            raise
        return cls(connection, _transport(session))

    async def acquire(self, keys: BlockKeys, deadline: Deadline) -> RemoteLease:
        """A lease on those blocks that the peer has itself."""
        request = node_pb2.AcquireRequest(
            keys=block_pb2.BlockKeys(
                layout_fingerprint=keys.layout, block_hashes=pack_hashes(keys.hashes)
            ),
            wait_ms=int(deadline.remaining_s() * WAIT_SHARE * 1000),
            local=True,
        )
        response, session = await self._connection.call(
            "Acquire", request, node_pb2.AcquireResponse, deadline
        )
        self.transport = _transport(session)
        return _lease(session, list(keys), response)

    async def read(
        self,
        lease: RemoteLease,
        blocks: Sequence[RemoteBlock],
        into: Sequence[memoryview],
        deadline: Deadline,
    ) -> list[MissReason | None]:
        """Fetch blocks, checksum verified; None where it went well, elsewhere `into` is undefined.

        Nothing is written into any `into` once the call has ended, however it ended.
        """
        session = lease.session
        if session.arena is not None:
            return await self._copy(session.arena, blocks, into)
        assert session.bulk is not None
        reads = [
            BulkRead(block.index, view, block.info.checksum)
            for block, view in zip(blocks, into, strict=True)
        ]
        return await session.bulk.read(
            session.id, lease.id, reads, deadline_s=deadline.remaining_s()
        )

    async def release(self, lease: RemoteLease, corrupt: Sequence[RemoteBlock]) -> None:
        """Give the lease back, and report blocks whose bytes were wrong. Never raises: a lease that
        is not given back ends by itself, and the next reader finds what is corrupt, too."""
        call = lease.session.channel.call
        report = node_pb2.ReportRequest(
            session_id=lease.session.id,
            lease_id=lease.id,
            indices=[block.index for block in corrupt],
        )
        release = node_pb2.ReleaseRequest(session_id=lease.session.id, lease_ids=[lease.id])
        with suppress(KVStoreError):
            if corrupt:
                await call("Report", report, node_pb2.ReportResponse, deadline_s=RELEASE_S)
            if lease.id:
                await call("Release", release, node_pb2.ReleaseResponse, deadline_s=RELEASE_S)

    async def close(self) -> None:
        """Idempotent, and bounded."""
        await self._connection.close()

    async def _copy(
        self, arena: Arena, blocks: Sequence[RemoteBlock], into: Sequence[memoryview]
    ) -> list[MissReason | None]:
        loop = asyncio.get_running_loop()
        copying = loop.run_in_executor(self._connection.executor, _copy_all, arena, blocks, into)
        try:
            return await asyncio.shield(copying)
        finally:  # a thread cannot be called back: also who is cancelled waits for it
            await asyncio.wait([copying])


def _copy_all(
    arena: Arena, blocks: Sequence[RemoteBlock], into: Sequence[memoryview]
) -> list[MissReason | None]:
    return [_copy_one(arena, block, view) for block, view in zip(blocks, into, strict=True)]


def _copy_one(arena: Arena, block: RemoteBlock, into: memoryview) -> MissReason | None:
    try:
        crc = copy_with_checksum(into, arena.view(block.offset, block.info.length_bytes))
        lapsed = arena.generation(block.offset) != block.generation
    except (ValueError, KVStoreError):  # the mapping was closed with its session, or never reached
        return MissReason.FAILED
    if lapsed:
        return MissReason.LATE
    return None if crc == block.info.checksum else MissReason.CORRUPT


def _transport(session: Session) -> TransportName:
    if session.arena is not None:
        return "shm"
    assert session.bulk is not None
    return session.bulk.transport


_MISSES = {
    MissReason.NEVER_STORED: MissReason.EVICTED,
    MissReason.PENDING: MissReason.EVICTED,
}
"""The directory said that the peer has it: that it has not means that it went."""


def _lease(
    session: Session, keys: Sequence[BlockKey], response: node_pb2.AcquireResponse
) -> RemoteLease:
    """Raises ProtocolError for an answer that does not fit the question."""
    found = [key for key, tier in zip(keys, response.tiers, strict=False) if tier]
    columns = (
        response.lengths_bytes,
        response.checksums,
        response.offsets,
        response.generations,
    )
    sizes = {len(column) for column in columns}
    if len(response.tiers) != len(keys) or len(response.miss_reasons) != len(keys):
        raise ProtocolError(f"the peer was asked for {len(keys)} blocks and answered of others")
    if sizes != {len(found)} or 0 in response.lengths_bytes:
        raise ProtocolError("the peer's lease does not say where each of its blocks is")
    blocks = [
        RemoteBlock(index, BlockInfo(key, length, crc), offset, generation)
        for index, (key, length, crc, offset, generation) in enumerate(
            zip(found, *columns, strict=True)
        )
    ]
    misses = {
        key: _miss(reason)
        for key, reason in zip(keys, response.miss_reasons, strict=True)
        if reason
    }
    return RemoteLease(session, response.lease_id, blocks, misses)


def _miss(reason: int) -> MissReason:
    try:
        miss = MissReason(reason)
    except ValueError:
        return MissReason.FAILED
    return _MISSES.get(miss, miss)

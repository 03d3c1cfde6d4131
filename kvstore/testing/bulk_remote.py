"""A client without a mapping of the arena, verb by verb: for tests of the bulk transports."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from google.protobuf.message import Message

from kvstore.core.checksum import checksum
from kvstore.tiers.base import MissReason
from kvstore.transports.base import BulkChannel, BulkRead, BulkWrite, Channel
from kvstore.transports.zmq.channel import ZmqChannel
from kvstore.wire.v1 import block_pb2, node_pb2

LONG_S = 20.0
"""Never reached unless a test fails."""

R = TypeVar("R", bound=Message)


def keys_of(*names: object) -> block_pb2.BlockKeys:
    hashes = [hashlib.sha256(str(name).encode()).digest() for name in names]
    return block_pb2.BlockKeys(
        layout_fingerprint=b"test layout 0123", block_hashes=b"".join(hashes)
    )


def noise(seed: int, length: int) -> bytes:
    """Bytes of which no two ranges are the same."""
    return random.Random(seed).randbytes(length)  # noqa: S311 - test data


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread, task or process does."""
    async with asyncio.timeout(LONG_S):
        while not condition():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.002)


@dataclass
class Leased:
    id: int
    checksums: Sequence[int]
    into: Sequence[memoryview]
    """Zeros, of the blocks' lengths."""


@dataclass(frozen=True)
class Reserved:
    id: int
    count: int


class Remote:
    """One session without shared memory. Owns its channels."""

    def __init__(self, control: Channel, bulk: BulkChannel, session_id: int) -> None:
        """Use `open`."""
        self.bulk = bulk
        self.session_id = session_id
        self._control = control

    @classmethod
    async def open(cls, endpoint: str, bulk: BulkChannel) -> Remote:
        control = ZmqChannel(endpoint)
        opened = await control.call(
            "OpenSession",
            node_pb2.OpenSessionRequest(client_name="remote"),
            node_pb2.OpenSessionResponse,
            deadline_s=LONG_S,
        )
        assert not opened.arena_path
        return cls(control, bulk, opened.session_id)

    async def reserve(self, keys: block_pb2.BlockKeys, block_bytes: int) -> Reserved:
        request = node_pb2.ReserveRequest(keys=keys, block_bytes=block_bytes)
        response = await self._call("Reserve", request, node_pb2.ReserveResponse)
        return Reserved(response.reservation_id, len(response.offsets))

    async def write(
        self, reservation: Reserved, blocks: Sequence[bytes], *, deadline_s: float = LONG_S
    ) -> None:
        writes = [BulkWrite(i, memoryview(block)) for i, block in enumerate(blocks)]
        await self.bulk.write(self.session_id, reservation.id, writes, deadline_s=deadline_s)

    async def commit(self, reservation: Reserved, blocks: Sequence[bytes]) -> None:
        request = node_pb2.CommitRequest(
            reservation_id=reservation.id,
            indices=range(len(blocks)),
            checksums=[checksum(block) for block in blocks],
            lengths_bytes=[len(block) for block in blocks],
        )
        await self._call("Commit", request, node_pb2.CommitResponse)

    async def abort(self, reservation: Reserved) -> None:
        request = node_pb2.AbortRequest(reservation_id=reservation.id)
        await self._call("Abort", request, node_pb2.AbortResponse)

    async def put(self, keys: block_pb2.BlockKeys, blocks: Sequence[bytes]) -> None:
        reservation = await self.reserve(keys, max(map(len, blocks)))
        assert reservation.count == len(blocks), "all of them are new and have room"
        await self.write(reservation, blocks)
        await self.commit(reservation, blocks)

    async def num_matched(self, keys: block_pb2.BlockKeys) -> int:
        """Outside of the session: it may have ended."""
        request = node_pb2.MatchRequest(keys=keys)
        response = await self._control.call(
            "Match", request, node_pb2.MatchResponse, deadline_s=LONG_S
        )
        return response.num_matched

    async def acquire(self, keys: block_pb2.BlockKeys) -> Leased:
        request = node_pb2.AcquireRequest(keys=keys)
        response = await self._call("Acquire", request, node_pb2.AcquireResponse)
        assert all(response.tiers), "all of them are there"
        buffers = [memoryview(bytearray(length)) for length in response.lengths_bytes]
        return Leased(response.lease_id, response.checksums, buffers)

    @asynccontextmanager
    async def leased(self, keys: block_pb2.BlockKeys) -> AsyncIterator[Leased]:
        lease = await self.acquire(keys)
        try:
            yield lease
        finally:
            request = node_pb2.ReleaseRequest(lease_ids=[lease.id])
            await self._call("Release", request, node_pb2.ReleaseResponse)

    async def read(
        self, lease: Leased, indices: Sequence[int] | None = None, *, deadline_s: float = LONG_S
    ) -> list[MissReason | None]:
        if indices is None:
            indices = range(len(lease.into))
        reads = [BulkRead(i, lease.into[i], lease.checksums[i]) for i in indices]
        return await self.bulk.read(self.session_id, lease.id, reads, deadline_s=deadline_s)

    async def vanish(self) -> None:
        """As if the process had died: the node is told nothing."""
        await self.bulk.close()
        await self.close_control()

    async def close_control(self) -> None:
        """The channel of the verbs alone."""
        await self._control.close()

    async def close_session(self) -> None:
        request = node_pb2.CloseSessionRequest()
        await self._call("CloseSession", request, node_pb2.CloseSessionResponse)

    async def _call(self, method: str, request: Any, response_type: type[R]) -> R:
        request.session_id = self.session_id
        return await self._control.call(method, request, response_type, deadline_s=LONG_S)

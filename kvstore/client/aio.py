"""The store's client for asyncio: `kvstore.client.base.StoreClient`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import count
from typing import Self

from kvstore.client.base import FoundBlock, PrefixMatch, ReservedBlock
from kvstore.client.connection import Connection, Session
from kvstore.client.deadline import Deadline
from kvstore.client.download import download
from kvstore.client.endpoint import open_channel
from kvstore.client.lease import Lease
from kvstore.client.reservation import Reservation
from kvstore.client.work import check_contiguous, run_sized
from kvstore.core.errors import (
    ChecksumError,
    DeadlineExceededError,
    InvalidArgumentError,
    LeaseExpiredError,
    UnavailableError,
)
from kvstore.core.ids import BlockKeys, pack_hashes
from kvstore.core.layout import KVLayout
from kvstore.tiers.base import MissReason, ReserveOutcome, TierKind
from kvstore.tiers.memory import copy_bytes
from kvstore.transports.base import Channel
from kvstore.wire.v1 import block_pb2, node_pb2

WAIT_SHARE = 0.8
"""Part of an acquire's deadline that the node may wait; the rest is for the answer to come back."""

_TIERS = {int(tier): tier for tier in TierKind}
"""Several times faster than a call of the class, once for each block."""


class Client:
    """See the protocol. Lives on the event loop that it was connected on."""

    def __init__(self, connection: Connection) -> None:
        """Use `connect`."""
        self._connection = connection
        self._ids = count(1)

    @classmethod
    async def connect(
        cls,
        endpoint: str,
        *,
        client_name: str = "client",
        layouts: Sequence[KVLayout] = (),
        deadline_s: float = 5.0,
    ) -> Self:
        """Open a session with the node at `endpoint`: tcp://, ipc:// (ZeroMQ) or grpc://.

        `layouts` are those that will be written; none = any. Raises UnavailableError if nobody
        answers, InvalidArgumentError if a block cannot fit, ConfigurationError for the endpoint.
        """
        return await cls.over(
            open_channel(endpoint),
            endpoint,
            client_name=client_name,
            layouts=layouts,
            deadline_s=deadline_s,
        )

    @classmethod
    async def over(
        cls,
        channel: Channel,
        endpoint: str,
        *,
        client_name: str = "client",
        layouts: Sequence[KVLayout] = (),
        deadline_s: float = 5.0,
    ) -> Self:
        """The same over a channel that is there already; the client owns it from now on."""
        connection = Connection(channel, endpoint, client_name, layouts)
        try:
            await connection.session(Deadline(deadline_s))
        except BaseException:
            await connection.close()
            raise
        return cls(connection)

    async def match(self, keys: BlockKeys, *, deadline_s: float = 1.0) -> PrefixMatch:
        request = node_pb2.MatchRequest(keys=_keys_message(keys))
        response = await self._connection.channel.call(
            "Match", request, node_pb2.MatchResponse, deadline_s=deadline_s
        )
        return PrefixMatch([TierKind(tier) for tier in response.tiers])

    async def reserve(
        self, keys: BlockKeys, block_bytes: int, *, deadline_s: float = 1.0
    ) -> Reservation:
        request = node_pb2.ReserveRequest(
            keys=_keys_message(keys), block_bytes=block_bytes, reservation_id=next(self._ids)
        )
        try:
            response, session = await self._connection.call(
                "Reserve", request, node_pb2.ReserveResponse, Deadline(deadline_s)
            )
        except (DeadlineExceededError, UnavailableError, asyncio.CancelledError):
            # It may be made all the same: say that nobody will write there.
            if request.session_id:
                self._connection.abort(request.session_id, request.reservation_id)
            raise
        return Reservation(self._connection, session, response, block_bytes)

    async def acquire(self, keys: BlockKeys, *, deadline_s: float = 1.0) -> Lease:
        deadline = Deadline(deadline_s)
        request = node_pb2.AcquireRequest(
            keys=_keys_message(keys), wait_ms=int(deadline_s * WAIT_SHARE * 1000)
        )
        response, session = await self._connection.call(
            "Acquire", request, node_pb2.AcquireResponse, deadline
        )
        return await _lease(self._connection, session, response, deadline)

    async def put(
        self, keys: BlockKeys, blocks: Sequence[memoryview], *, deadline_s: float = 1.0
    ) -> list[int]:
        """See the protocol. Raises InvalidArgumentError if a block is empty or not contiguous."""
        _check_blocks(keys, blocks)
        if not blocks:
            return []
        deadline = Deadline(deadline_s)
        block_bytes = max(block.nbytes for block in blocks)
        async with await self.reserve(
            keys, block_bytes, deadline_s=deadline.remaining_s()
        ) as reservation:
            written = [
                ReservedBlock(block.index, block.view[: blocks[block.index].nbytes])
                for block in reservation.blocks
            ]
            copies = [(block.view, blocks[block.index].cast("B")) for block in written]
            total_bytes = sum(view.nbytes for view, _ in copies)
            await run_sized(self._connection.executor, total_bytes, _copy_all, copies)
            await reservation.commit(written)
        here = (ReserveOutcome.RESERVED, ReserveOutcome.EXISTS)
        return [i for i, outcome in enumerate(reservation.outcomes) if outcome in here]

    async def get(
        self, keys: BlockKeys, into: Sequence[memoryview], *, deadline_s: float = 1.0
    ) -> dict[int, MissReason]:
        assert len(into) == len(keys)
        async with await self.acquire(keys, deadline_s=deadline_s) as lease:
            total_bytes = sum(block.view.nbytes for block in lease.found)
            bad = await run_sized(self._connection.executor, total_bytes, _copy_out, (lease, into))
        return lease.misses | bad

    async def statistics(self, *, deadline_s: float = 1.0) -> node_pb2.StatisticsResponse:
        """What the node tells of itself."""
        return await self._connection.channel.call(
            "Statistics",
            node_pb2.StatisticsRequest(),
            node_pb2.StatisticsResponse,
            deadline_s=deadline_s,
        )

    async def close(self) -> None:
        """Ends the session, with all that it holds. Idempotent."""
        await self._connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


def _keys_message(keys: BlockKeys) -> block_pb2.BlockKeys:
    return block_pb2.BlockKeys(
        layout_fingerprint=keys.layout, block_hashes=pack_hashes(keys.hashes)
    )


async def _lease(
    connection: Connection,
    session: Session,
    response: node_pb2.AcquireResponse,
    deadline: Deadline,
) -> Lease:
    indices = [index for index, tier in enumerate(response.tiers) if tier]
    views = await _views(session, response, deadline)
    misses = {i: MissReason(miss) for i, miss in enumerate(response.miss_reasons) if miss}
    found: list[FoundBlock] = []
    columns = zip(indices, views, response.checksums, response.generations, strict=True)
    for index, view, crc, generation in columns:
        if isinstance(view, MissReason):
            misses[index] = view
        else:
            found.append(FoundBlock(index, _TIERS[response.tiers[index]], view, crc, generation))
    offsets = response.offsets if session.arena else ()
    return Lease(connection, session, response.lease_id, indices, offsets, found, misses)


async def _views(
    session: Session, response: node_pb2.AcquireResponse, deadline: Deadline
) -> Sequence[memoryview | MissReason]:
    """The memory of each block found: in the arena, or copied here over the network."""
    if session.arena is not None:
        views = map(session.arena.view, response.offsets, response.lengths_bytes)
        return [view.toreadonly() for view in views]
    if not response.offsets:
        return []
    assert session.bulk is not None
    request = node_pb2.ReadRequest(session_id=session.id, lease_id=response.lease_id)
    return await download(
        session.bulk, request, response.lengths_bytes, response.checksums, deadline
    )


def _check_blocks(keys: BlockKeys, blocks: Sequence[memoryview]) -> None:
    assert len(blocks) == len(keys)
    for block in blocks:
        check_contiguous("blocks", block)
        if not block.nbytes:
            raise InvalidArgumentError("blocks must not be empty")


def _copy_all(copies: Sequence[tuple[memoryview, memoryview]]) -> None:
    for into, data in copies:
        copy_bytes(into, data)


def _copy_out(work: tuple[Lease, Sequence[memoryview]]) -> dict[int, MissReason]:
    lease, into = work
    bad = {}
    for block in lease.found:
        try:
            lease.copy_into(block, into[block.index])
        except ChecksumError:
            bad[block.index] = MissReason.CORRUPT
        except LeaseExpiredError:
            bad[block.index] = MissReason.LATE
    return bad

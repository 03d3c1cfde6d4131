"""Bytes of blocks over gRPC streams, where nothing but HTTP/2 passes."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence

from kvstore.core.errors import (
    DeadlineExceededError,
    ProtocolError,
    ResourceExhaustedError,
    UnavailableError,
)
from kvstore.tiers.base import MissReason
from kvstore.transports.base import BulkRead, BulkTransport, BulkWrite
from kvstore.transports.grpc.channel import GrpcChannel
from kvstore.transports.incoming import Incoming
from kvstore.wire.v1 import node_pb2

_LOG = logging.getLogger(__name__)

PIECE_BYTES = 1 << 20
"""Of one message: well below the message limit, and a copy that holds up the event loop for about
as long as parsing it does."""


class GrpcBulkChannel:
    """Implements `kvstore.transports.base.BulkChannel` over a channel that it owns from now on.

    Each call is a stream of its own, paced by HTTP/2: that is the bound on bytes in flight.
    """

    transport: BulkTransport = "grpc"

    def __init__(self, channel: GrpcChannel) -> None:
        self._channel = channel

    async def read(
        self, session_id: int, lease_id: int, blocks: Sequence[BulkRead], *, deadline_s: float
    ) -> list[MissReason | None]:
        incoming = {block.index: Incoming(block) for block in blocks}
        unfinished = MissReason.FAILED
        request = node_pb2.ReadRequest(
            session_id=session_id, lease_id=lease_id, indices=list(incoming)
        )
        try:
            if incoming:
                await self._read(request, incoming, deadline_s)
        except DeadlineExceededError:
            unfinished = MissReason.LATE
        except (UnavailableError, ProtocolError, ResourceExhaustedError) as error:
            _LOG.info("reading from the node ended early: %s", error)
        return [block.outcome(unfinished) for block in incoming.values()]

    async def write(
        self,
        session_id: int,
        reservation_id: int,
        blocks: Sequence[BulkWrite],
        *,
        deadline_s: float,
    ) -> None:
        if blocks:
            pieces = _pieces(session_id, reservation_id, blocks)
            await self._channel.upload(
                "Write", pieces, node_pb2.WriteResponse, deadline_s=deadline_s
            )

    async def close(self) -> None:
        await self._channel.close()

    async def _read(
        self, request: node_pb2.ReadRequest, incoming: dict[int, Incoming], deadline_s: float
    ) -> None:
        async for piece in self._channel.download(
            "Read", request, node_pb2.ReadResponse, deadline_s=deadline_s
        ):
            block = incoming.get(piece.index)
            if block is None:
                raise ProtocolError(f"the node sent block {piece.index}, which nobody asked for")
            block.take(piece.start_byte, memoryview(piece.data))


async def _pieces(
    session_id: int, reservation_id: int, blocks: Sequence[BulkWrite]
) -> AsyncIterator[node_pb2.WriteRequest]:
    for block in blocks:
        data = block.data.cast("B")
        for start_byte in range(0, data.nbytes, PIECE_BYTES):
            yield node_pb2.WriteRequest(
                session_id=session_id,
                reservation_id=reservation_id,
                index=block.index,
                start_byte=start_byte,
                data=bytes(data[start_byte : start_byte + PIECE_BYTES]),
            )

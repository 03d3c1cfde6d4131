"""Leased blocks over the network, for clients that cannot map the node's arena."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from kvstore.client.deadline import Deadline
from kvstore.core.checksum import checksum
from kvstore.core.errors import KVStoreError, ProtocolError
from kvstore.tiers.base import MissReason
from kvstore.transports.grpc.channel import GrpcChannel
from kvstore.wire.v1 import node_pb2

_LOG = logging.getLogger(__name__)


async def download(
    bulk: GrpcChannel,
    request: node_pb2.ReadRequest,
    lengths_bytes: Sequence[int],
    checksums: Sequence[int],
    deadline: Deadline,
) -> list[memoryview | MissReason]:
    """All blocks of a lease as private copies, verified; why not, for those that did not come."""
    buffers = [bytearray(length) for length in lengths_bytes]
    received = [0] * len(buffers)
    try:
        remaining_s = deadline.remaining_s()
        async for piece in bulk.download(
            "Read", request, node_pb2.ReadResponse, deadline_s=remaining_s
        ):
            _take(piece, buffers, received)
    except KVStoreError as error:
        _LOG.info("reading from the node ended early: %s", error)
    return [
        _verified(buffer, size, crc)
        for buffer, size, crc in zip(buffers, received, checksums, strict=True)
    ]


def _take(piece: node_pb2.ReadResponse, buffers: Sequence[bytearray], received: list[int]) -> None:
    """Pieces of a block come in order."""
    in_order = piece.index < len(buffers) and piece.start_byte == received[piece.index]
    end_byte = piece.start_byte + len(piece.data)
    if not in_order or end_byte > len(buffers[piece.index]):
        raise ProtocolError(f"the node sent bytes nobody asked for, of block {piece.index}")
    buffers[piece.index][piece.start_byte : end_byte] = piece.data
    received[piece.index] = end_byte


def _verified(buffer: bytearray, received: int, crc: int) -> memoryview | MissReason:
    if received < len(buffer):
        return MissReason.LATE
    return memoryview(buffer).toreadonly() if checksum(buffer) == crc else MissReason.CORRUPT

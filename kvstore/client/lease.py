"""Blocks being read: `kvstore.client.base.Lease`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Self

from kvstore.client.base import FoundBlock
from kvstore.client.connection import Connection, Session
from kvstore.client.work import check_contiguous
from kvstore.core.checksum import checksum
from kvstore.core.errors import (
    ChecksumError,
    InvalidArgumentError,
    KVStoreError,
    LeaseExpiredError,
)
from kvstore.tiers.base import MissReason
from kvstore.tiers.memory import copy_bytes
from kvstore.wire.v1 import node_pb2

RELEASE_S = 0.25


class Lease:
    """See the protocol. `copy_into` and `verify` may be called from any thread."""

    def __init__(
        self,
        connection: Connection,
        session: Session,
        lease_id: int,
        indices: Sequence[int],
        offsets: Sequence[int],
        found: Sequence[FoundBlock],
        misses: dict[int, MissReason],
    ) -> None:
        """`indices` of all keys that the node found, of which some may have been lost on the way
        here; `offsets` into the arena for each, or none where the views are private copies."""
        self.found = found
        self.misses = misses
        self._connection = connection
        self._session = session
        self._id = lease_id
        self._indices = indices
        self._offsets = dict(zip(indices, offsets, strict=False))
        self._bad = {i for i in indices if misses.get(i) is MissReason.CORRUPT}
        """Reported to the node with the release."""
        self._released = False

    @property
    def prefix_length(self) -> int:
        return min(self.misses, default=len(self.found) + len(self.misses))

    def copy_into(self, block: FoundBlock, into: memoryview) -> None:
        check_contiguous("into", into)
        if into.nbytes < block.view.nbytes:
            raise InvalidArgumentError(
                f"into has {into.nbytes} bytes, and the block {block.view.nbytes}"
            )
        target = into.cast("B")[: block.view.nbytes]
        copy_bytes(target, block.view)
        self.verify(block)
        if checksum(target) != block.checksum:
            self._bad.add(block.index)
            raise ChecksumError(
                f"block {block.index} does not match its checksum; treat it as missed"
            )

    def verify(self, block: FoundBlock) -> None:
        offset = self._offsets.get(block.index)
        if offset is None:  # a private copy, which nothing overwrites
            return
        assert self._session.arena is not None
        with suppress(ValueError):  # the mapping was closed with its session
            if self._session.arena.generation(offset) == block.generation:
                return
        raise LeaseExpiredError(
            f"the memory of block {block.index} was given to another block; acquire it again"
        )

    async def release(self) -> None:
        if self._released or not self._id:
            return
        self._released = True
        await asyncio.shield(self._send_release())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.release()

    async def _send_release(self) -> None:
        call = self._connection.channel.call
        release = node_pb2.ReleaseRequest(session_id=self._session.id, lease_ids=[self._id])
        report = node_pb2.ReportRequest(
            session_id=self._session.id,
            lease_id=self._id,
            indices=[i for i, index in enumerate(self._indices) if index in self._bad],
        )
        with suppress(KVStoreError):  # a lost report comes from the next reader, too
            if self._bad:
                await call("Report", report, node_pb2.ReportResponse, deadline_s=RELEASE_S)
        with suppress(KVStoreError):  # the lease then ends by itself
            await call("Release", release, node_pb2.ReleaseResponse, deadline_s=RELEASE_S)

    def __repr__(self) -> str:
        return f"Lease({self._id}, {len(self.found)} found, {len(self.misses)} missed)"

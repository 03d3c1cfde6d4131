"""Blocks being written: `kvstore.client.base.Reservation`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Self

from kvstore.client.blocks import ReservedBlock
from kvstore.client.connection import Connection, Session
from kvstore.client.work import run_sized
from kvstore.core.checksum import checksum
from kvstore.core.errors import ReservationExpiredError, SessionExpiredError, UnavailableError
from kvstore.tiers.base import ReserveOutcome
from kvstore.transports.base import BulkWrite
from kvstore.wire.v1 import node_pb2

COMMIT_S = 5.0
ABORT_S = 0.25
"""Longest time that a caller waits for its abort; it goes on by itself after that."""
ALL_LAYERS = 0xFFFFFFFF
"""Watermark of a block whose bytes are all there."""


class Reservation:
    """See the protocol. After commit or abort the views are released: using one is an error.

    A view that something else was made from (an array, a tensor) cannot be released; its owner must
    not write through it any more, for the memory will be another block's.
    """

    def __init__(
        self,
        connection: Connection,
        session: Session,
        response: node_pb2.ReserveResponse,
        block_bytes: int,
    ) -> None:
        self.outcomes = [ReserveOutcome(outcome) for outcome in response.outcomes]
        """One for each key asked for."""
        self._connection = connection
        self._session = session
        self._id = response.reservation_id
        self.blocks: Sequence[ReservedBlock] = _blocks(
            session, self.outcomes, response, block_bytes
        )
        self._left = {block.index: i for i, block in enumerate(self.blocks)}
        """Index of each block not committed → its position in the reservation."""
        self._committed: set[int] = set()
        self._offsets = dict(zip(self._left, response.offsets, strict=False))

    @property
    def stored(self) -> set[int]:
        """Indices of the keys that are in the store, found or committed."""
        exists = (i for i, o in enumerate(self.outcomes) if o is ReserveOutcome.EXISTS)
        return self._committed.union(exists)

    def layers_ready(self, layers: int, block: ReservedBlock | None = None) -> None:
        arena = self._session.arena
        if arena is None:
            return
        if block is not None:
            self._check_left([block])
        for index in [block.index] if block else self._left:
            arena.set_layers_ready(self._offsets[index], layers)

    async def commit(self, blocks: Sequence[ReservedBlock] | None = None) -> None:
        if blocks is None:
            blocks = [block for block in self.blocks if block.index in self._left]
        if not blocks:
            return
        self._check_left(blocks)
        total_bytes = sum(block.view.nbytes for block in blocks)
        checksums = await run_sized(
            self._connection.executor, total_bytes, _checksums, [block.view for block in blocks]
        )
        await self.commit_as(blocks, checksums)

    async def commit_as(self, blocks: Sequence[ReservedBlock], checksums: Sequence[int]) -> None:
        """`commit` for who knows the CRC-32C of what is in each block already."""
        self._check_left(blocks)
        self._all_layers_ready(blocks)
        request = node_pb2.CommitRequest(
            session_id=self._session.id,
            reservation_id=self._id,
            indices=[self._left[block.index] for block in blocks],
            checksums=checksums,
            lengths_bytes=[block.view.nbytes for block in blocks],
        )
        try:
            await self._upload(blocks)
            await self._session.channel.call(
                "Commit", request, node_pb2.CommitResponse, deadline_s=COMMIT_S
            )
        except (SessionExpiredError, UnavailableError) as error:
            if isinstance(error, UnavailableError) and not self._session.lost:
                raise
            raise ReservationExpiredError(
                "the session of this reservation ended; reserve again"
            ) from error
        committed = {block.index for block in blocks}
        self._release_views([*blocks, *(b for b in self.blocks if b.index in committed)])
        self._committed |= committed
        for index in committed:
            del self._left[index]

    async def abort(self) -> None:
        if not self._left:
            return
        self._release_views([block for block in self.blocks if block.index in self._left])
        self._left.clear()
        # A task of its own: it must arrive even if this one is being cancelled.
        await asyncio.wait([self._connection.abort(self._session.id, self._id)], timeout=ABORT_S)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.abort()

    def _check_left(self, blocks: Sequence[ReservedBlock]) -> None:
        if missing := {block.index for block in blocks} - self._left.keys():
            raise ReservationExpiredError(f"block {min(missing)} was committed or aborted before")

    def _all_layers_ready(self, blocks: Sequence[ReservedBlock]) -> None:
        arena = self._session.arena
        with suppress(ValueError):  # the mapping was closed with its session
            for block in blocks if arena else ():
                assert arena is not None
                arena.set_layers_ready(self._offsets[block.index], ALL_LAYERS)

    async def _upload(self, blocks: Sequence[ReservedBlock]) -> None:
        if self._session.bulk is None:
            return
        writes = [BulkWrite(self._left[block.index], block.view) for block in blocks]
        await self._session.bulk.write(self._session.id, self._id, writes, deadline_s=COMMIT_S)

    def _release_views(self, blocks: Sequence[ReservedBlock]) -> None:
        for block in blocks:
            with suppress(BufferError):  # something was made from it: see the class's docstring
                block.view.release()

    def __repr__(self) -> str:
        return f"Reservation({self._id}, {len(self._left)} of {len(self.blocks)} blocks left)"


def _blocks(
    session: Session,
    outcomes: Sequence[ReserveOutcome],
    response: node_pb2.ReserveResponse,
    block_bytes: int,
) -> list[ReservedBlock]:
    indices = [i for i, outcome in enumerate(outcomes) if outcome is ReserveOutcome.RESERVED]
    if session.arena is None:
        return [ReservedBlock(i, memoryview(bytearray(block_bytes))) for i in indices]
    return [
        ReservedBlock(i, session.arena.view(offset, block_bytes))
        for i, offset in zip(indices, response.offsets, strict=True)
    ]


def _checksums(views: Sequence[memoryview]) -> list[int]:
    return [checksum(view) for view in views]

"""Blocks being read: `kvstore.client.base.Lease`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from typing import Self

from kvstore.client.blocks import FoundBlock
from kvstore.client.buffers import Buffer, byte_view
from kvstore.client.connection import Session
from kvstore.client.copying import Items, copy_view, gather, part_of
from kvstore.client.fencing import Following, LeasedFrom
from kvstore.client.releases import RELEASE_S
from kvstore.core.checksum import checksum
from kvstore.core.errors import (
    ChecksumError,
    InvalidArgumentError,
    KVStoreError,
    LeaseExpiredError,
)
from kvstore.core.layout import KVLayout
from kvstore.core.ranges import BlockRange
from kvstore.tiers.base import MissReason
from kvstore.tiers.memory import copy_with_checksum
from kvstore.wire.v1 import node_pb2


class Lease(Following):
    """See the protocol. Copies, `verify` and `layers_ready` may be called from any thread."""

    def __init__(
        self,
        origin: LeasedFrom,
        indices: Sequence[int],
        offsets: Sequence[int],
        found: Sequence[FoundBlock],
        misses: dict[int, MissReason],
    ) -> None:
        """`indices` of all keys that the node found, of which some may have been lost on the way
        here; `offsets` into the arena for each, or none where the views are private copies."""
        self.found = found
        self.misses = misses
        self._origin = origin
        self._indices = indices
        self._offsets = dict(zip(indices, offsets, strict=False))
        self._bad = {i for i in indices if misses.get(i) is MissReason.CORRUPT} if misses else set()
        """Reported to the node with the release."""
        self._checksums: dict[int, int] = {}
        """Of blocks that were pending, once they are confirmed."""
        self._released = False

    @property
    def session(self) -> Session:
        return self._origin.session

    @property
    def mapped(self) -> bool:
        """Whether the views are the node's own memory, and not copies."""
        return self._origin.session.arena is not None

    @property
    def offsets(self) -> Collection[int]:
        """In the arena, one for each block found. None if not `mapped`."""
        return self._offsets.values()

    @property
    def prefix_length(self) -> int:
        return min(self.misses, default=len(self.found) + len(self.misses))

    def copy_into(self, block: FoundBlock, into: Buffer) -> None:
        target = target_of(into, block.view.nbytes)
        if self._checks(block):
            if copy_with_checksum(target, block.view) != self._checksum(block):
                self.verify(block)
                raise self._corrupt(block)
        else:
            copy_view(target, block.view)
        self.verify(block)

    def copy_part_into(
        self, block: FoundBlock, layout: KVLayout, part: BlockRange, into: Buffer
    ) -> None:
        flat = target_of(into, part.length_bytes(layout))
        self.gather(block, layout, part, part_of(flat, layout, part))

    def gather(self, block: FoundBlock, layout: KVLayout, part: BlockRange, into: Items) -> None:
        """`copy_part_into` for a target of any strides: plain bits, of the part's shape."""
        gather(into, block.view, layout, part)
        self._make_sure(block)

    def copy_all_into(
        self, blocks: Iterable[FoundBlock], into: Sequence[memoryview]
    ) -> dict[int, MissReason]:
        """Blocks of `found` into the flat bytes of their keys; returns those whose copies are not
        to be used. For a whole batch at once, off the event loop."""
        if self._origin.verify == "always" or not self.mapped:
            return self.copy_each(blocks, lambda block: self.copy_into(block, into[block.index]))
        copied = []
        for block in blocks:
            target, view = into[block[0]], block[2]
            copy_view(target if len(target) == len(view) else target_of(target, len(view)), view)
            copied.append(block)
        return self._overwritten(copied)

    def copy_each(
        self, blocks: Iterable[FoundBlock], copy: Callable[[FoundBlock], None]
    ) -> dict[int, MissReason]:
        """`copy` blocks of `found`, by a method of this lease; returns those whose copies are not
        to be used. For a whole batch at once, off the event loop."""
        bad: dict[int, MissReason] = {}
        for block in blocks:
            try:
                copy(block)
            except ChecksumError:
                bad[block.index] = MissReason.CORRUPT
            except LeaseExpiredError:
                bad[block.index] = MissReason.LATE
        return bad

    def check(self, block: FoundBlock) -> None:
        if checksum(block.view) != self._checksum(block):
            self.verify(block)
            raise self._corrupt(block)
        self.verify(block)

    async def release(self) -> None:
        if self._released or not self._origin.lease_id:
            return
        self._released = True
        if self._bad:
            await asyncio.shield(self._report())
        origin = self._origin
        origin.releases.add(origin.channel, origin.session.id, origin.lease_id)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.release()

    def _checks(self, block: FoundBlock) -> bool:
        """Private copies were verified as they came; pending blocks have no checksum yet."""
        confirmed = not block.pending or block.index in self._checksums
        return self._origin.verify == "always" and block.index in self._offsets and confirmed

    def _checksum(self, block: FoundBlock) -> int:
        return self._checksums.get(block.index, block.checksum)

    def _make_sure(self, block: FoundBlock) -> None:
        """The bytes of a generation never change: their checksum now, and their generation after
        it, prove what was copied before."""
        if self._checks(block):
            self.check(block)
        else:
            self.verify(block)

    def _corrupt(self, block: FoundBlock) -> ChecksumError:
        self._bad.add(block.index)
        return ChecksumError(f"block {block.index} does not match its checksum; treat it as missed")

    async def _report(self) -> None:
        report = node_pb2.ReportRequest(
            session_id=self._origin.session.id,
            lease_id=self._origin.lease_id,
            indices=[i for i, index in enumerate(self._indices) if index in self._bad],
        )
        with suppress(KVStoreError):  # a lost report comes from the next reader, too
            await self._origin.channel.call(
                "Report", report, node_pb2.ReportResponse, deadline_s=RELEASE_S
            )

    def __repr__(self) -> str:
        return f"Lease({self._origin.lease_id}, {len(self.found)} found, {len(self.misses)} missed)"


def target_of(into: Buffer, length_bytes: int) -> memoryview:
    """That many bytes of a caller's buffer. Raises InvalidArgumentError."""
    target = byte_view("into", into)
    if target.readonly:
        raise InvalidArgumentError("into is read-only; give memory that can be written")
    if target.nbytes < length_bytes:
        raise InvalidArgumentError(
            f"into has {target.nbytes} bytes, and the block or part of it {length_bytes}; give a "
            "larger buffer"
        )
    return target[:length_bytes]

"""What keeps a reader from using bytes that are not its block's: generations, and for blocks that
are being written, watermarks and confirmation."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from kvstore.client.blocks import FoundBlock
from kvstore.client.connection import Session
from kvstore.client.deadline import Deadline
from kvstore.client.messages import wait_ms
from kvstore.client.releases import Releases
from kvstore.client.verification import Verify
from kvstore.core.errors import LeaseExpiredError
from kvstore.tiers.base import MissReason
from kvstore.transports.base import Channel
from kvstore.wire.v1 import node_pb2

ALL_LAYERS = 0xFFFFFFFF
"""Watermark of a block whose bytes are all there."""
FIRST_POLL_S, LAST_POLL_S = 0.000_05, 0.002


@dataclass(frozen=True, slots=True)
class LeasedFrom:
    """Where a lease came from."""

    channel: Channel
    session: Session
    releases: Releases
    verify: Verify
    lease_id: int
    """0 = nothing was found."""


class Following:
    """Part of `kvstore.client.lease.Lease`; see the protocol."""

    found: Sequence[FoundBlock]
    misses: dict[int, MissReason]
    _origin: LeasedFrom
    _indices: Sequence[int]
    _offsets: dict[int, int]
    _checksums: dict[int, int]

    def verify(self, block: FoundBlock) -> None:
        offset = self._offsets.get(block.index)
        if offset is None:  # a private copy, which nothing overwrites
            return
        arena = self._origin.session.arena
        assert arena is not None
        with suppress(ValueError):  # the mapping was closed with its session
            if arena.generation(offset) == block.generation:
                return
        raise LeaseExpiredError(
            f"the memory of block {block.index} was given to another block; acquire it again"
        )

    def layers_ready(self, block: FoundBlock) -> int:
        offset = self._offsets.get(block.index)
        if not block.pending or offset is None:
            return ALL_LAYERS
        arena = self._origin.session.arena
        assert arena is not None
        ready = arena.layers_ready(offset)
        self.verify(block)  # after the watermark was read: it is that of this life of the slot
        return ready

    async def wait_layers(self, layers: int, deadline_s: float) -> None:
        deadline = Deadline(deadline_s)
        poll_s = FIRST_POLL_S
        waiting = [block for block in self.found if block.pending]
        while waiting := [block for block in waiting if self.layers_ready(block) < layers]:
            await asyncio.sleep(min(poll_s, deadline.remaining_s()))
            poll_s = min(poll_s * 2, LAST_POLL_S)

    async def confirm(self, deadline_s: float) -> dict[int, MissReason]:
        pending = [block for block in self.found if block.pending]
        if not pending:
            return {}
        response = await self._origin.channel.call(
            "Confirm",
            node_pb2.ConfirmRequest(
                session_id=self._origin.session.id,
                lease_id=self._origin.lease_id,
                wait_ms=wait_ms(deadline_s),
            ),
            node_pb2.ConfirmResponse,
            deadline_s=deadline_s,
        )
        reasons = dict(zip(self._indices, response.miss_reasons, strict=True))
        checksums = dict(zip(self._indices, response.checksums, strict=True))
        misses = {b.index: MissReason(reasons[b.index]) for b in pending if reasons[b.index]}
        misses |= self._overwritten([block for block in pending if block.index not in misses])
        self.misses.update(misses)
        self._checksums = {b.index: checksums[b.index] for b in pending if b.index not in misses}
        return misses

    def _overwritten(self, blocks: Sequence[FoundBlock]) -> dict[int, MissReason]:
        """Those whose memory was reused: `verify` of many at once."""
        arena = self._origin.session.arena
        if arena is None:
            return {}
        try:
            offsets = self._offsets
            now = arena.generations([offsets[block.index] for block in blocks])
        except ValueError:  # the mapping was closed with its session
            return dict.fromkeys((block.index for block in blocks), MissReason.LATE)
        if now == [block.generation for block in blocks]:
            return {}
        pairs = zip(blocks, now, strict=True)
        return {block.index: MissReason.LATE for block, at in pairs if at != block.generation}

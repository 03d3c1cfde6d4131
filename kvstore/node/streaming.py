"""Blocks that are read while they are written: a decode worker follows a prefill worker.

    writer   reserve ─ layer 0 ─ layer 1 ─ … ─ last layer ─ commit (checksum of all)
    reader         acquire (streaming) ─ layer 0 ─ … ─ last layer ─ confirm ─▶ now they count

A writer that maps the arena tells there how many layers of a slot are whole (`layers_ready`). What
a reader took from below that watermark is only as good as the block becomes: a reader whose block
is not committed in the end must treat it as missed, and throw away what it computed from it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kvstore.core.ids import BlockKey
from kvstore.node.arrivals import Arrivals
from kvstore.node.sessions import Lease
from kvstore.tiers.base import AddressableTier, MissReason, Resident, Slot, TierKind


@dataclass(eq=False, slots=True)
class _Waiter:
    """One call that waits for the commit of several slots, or for the first that fails."""

    num_left: int
    done: asyncio.Future[None]

    def settle(self, *, committed: bool) -> None:
        self.num_left -= 1
        if (self.num_left == 0 or not committed) and not self.done.done():
            self.done.set_result(None)


class Streams:
    """Pending blocks under lease, and who waits for them. Owned by the node's event loop.

    A leased slot gets no other use while the lease lives, even if its writer gives up or runs out
    of time: then its generation rises and its memory waits. So a reader never reads another block's
    bytes, and learns by `note` whether those that it read were this one's.
    """

    def __init__(self, host: AddressableTier, arrivals: Arrivals) -> None:
        self._host = host
        self._arrivals = arrivals
        self._waiters: dict[int, list[_Waiter]] = {}
        """By the offset of the slot that they wait for."""

    def acquire(
        self, keys: Sequence[BlockKey], tiers: Sequence[TierKind | MissReason]
    ) -> dict[int, Slot]:
        """Take a reference on each block that a session is writing, by its index in `keys`.

        What comes from disk or from another node is no such block: it has no layers before it is
        whole.
        """
        indices = [
            i
            for i, tier in enumerate(tiers)
            if tier is MissReason.PENDING and self._arrivals.find(keys[i]) is None
        ]
        slots = self._host.acquire_pending([keys[i] for i in indices])
        return {i: slot for i, slot in zip(indices, slots, strict=True) if slot is not None}

    def settle(self, slots: Iterable[Slot], *, committed: bool) -> None:
        """These slots are not being written any more."""
        if self._waiters:
            for slot in slots:
                for waiter in self._waiters.pop(slot.offset, ()):
                    waiter.settle(committed=committed)

    def note(self, lease: Lease) -> None:
        """See what became of the blocks of a live lease that were being written."""
        outcomes = self._host.streamed(lease.pending.values())
        for (index, slot), outcome in zip(list(lease.pending.items()), outcomes, strict=True):
            if isinstance(outcome, Resident):
                lease.residents[index] = outcome
                del lease.pending[index]
            elif outcome is not MissReason.PENDING:
                lease.failed[index] = slot
                del lease.pending[index]

    async def wait(self, lease: Lease, timeout_s: float) -> None:
        """Until nothing of a lease is being written, or one of its blocks failed, or the time is
        over. The lease may have ended meanwhile."""
        slots = list(lease.pending.values())
        waiter = _Waiter(len(slots), asyncio.get_running_loop().create_future())
        for slot in slots:
            self._waiters.setdefault(slot.offset, []).append(waiter)
        try:
            await asyncio.wait([waiter.done], timeout=timeout_s)
        finally:
            for slot in slots:
                self._forget(slot, waiter)

    def _forget(self, slot: Slot, waiter: _Waiter) -> None:
        waiters = self._waiters.get(slot.offset, [])
        if waiter in waiters:
            waiters.remove(waiter)
            if not waiters:
                del self._waiters[slot.offset]

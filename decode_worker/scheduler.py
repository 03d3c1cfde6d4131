"""Which tokens a decode step computes: continuous batching, with preemption when blocks run out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from model_runner.request_queue import RequestQueue
from model_runner.types import Blocks, Chunk, Request

_HEAD_START_ARRIVALS = 64
"""What a level of priority is worth: it overtakes those that came so many requests before."""


class DecodeScheduler:
    """Implements `Scheduler` for requests that stream tokens.

    A step computes one token of every running sequence first, in the order of rank; what is left of
    the budget goes to prompts (and to what a preempted sequence lost), so that a long prompt delays
    the streams by a bounded step. Rank is the order of arrival, where priority is a head start.

    The victim of a preemption is the last in rank: all but its partly filled block can be found
    again, on the device or in the store, so that what is lost hardly differs, and order decides.
    It waits at its rank: at the queue's head, unless one of higher priority came meanwhile.

    Nobody starves. A request is outranked by finitely many others, ever, and the first in rank
    never loses its blocks: it runs to its end, and the next one is the first. Nor does one go back
    and forth: with each preemption, twice as many blocks must be free for the growth of each
    running request (up to all that it may need) before it is admitted again.
    """

    def __init__(self, *, max_batch_tokens: int, max_running: int) -> None:
        assert max_batch_tokens >= 1
        self._max_batch_tokens = max_batch_tokens
        self._num_arrived = 0
        self._queue = RequestQueue(min(max_running, max_batch_tokens))

    @property
    def num_running(self) -> int:
        return self._queue.num_running

    @property
    def num_waiting(self) -> int:
        return self._queue.num_waiting

    def add(self, request: Request) -> None:
        self._queue.add(request, self._num_arrived - _HEAD_START_ARRIVALS * request.priority)
        self._num_arrived += 1

    def remove(self, request: Request) -> None:
        self._queue.remove(request)

    def schedule(self, blocks: Blocks) -> Sequence[Chunk]:
        num_running = self._queue.num_running
        chunks = self._decode(blocks)
        if self._queue.num_running == num_running:
            self._queue.admit(lambda request: self._fits(request, blocks))
        chunks += self._prefill(blocks, {chunk.request for chunk in chunks})
        if not chunks:
            self._make_way(blocks)
        return chunks

    def _decode(self, blocks: Blocks) -> list[Chunk]:
        """One token of each running sequence. Whoever runs out of blocks takes those of the
        last."""
        return [
            Chunk(request, 1)
            for request in self._queue.running()
            if not request.loading
            and request.num_uncomputed == 1
            and self._queue.is_running(request)
            and self._make_room(request, blocks)
        ]

    def _make_room(self, request: Request, blocks: Blocks) -> bool:
        """False if it must wait: for those before it, for loads, or for blocks that leave."""
        while not blocks.extend(request, 1):
            victim = self._queue.last_after(request)
            if victim is None or blocks.num_leaving:
                return False
            self._preempt(victim, blocks)
        return True

    def _make_way(self, blocks: Blocks) -> None:
        """Nobody can go on. Unless room comes of itself, the last gives way: a prompt whose blocks
        behind the window are held by others too may wait for one that waits for it."""
        running = self._queue.running()
        if not running or blocks.num_leaving or any(request.loading for request in running):
            return
        victim = self._queue.last_after(running[0])
        if victim is not None:
            self._preempt(victim, blocks)

    def _preempt(self, victim: Request, blocks: Blocks) -> None:
        blocks.preempt(victim)
        self._queue.put_back(victim)

    def _fits(self, request: Request, blocks: Blocks) -> bool:
        """Whether it is admitted now: with a margin, lest that causes the next preemption."""
        each = 1 << request.num_preemptions
        growing = chain(self._queue.running(), (request,))
        margin = sum(min(each, blocks.growth(one)) for one in growing)
        return blocks.admit(request, spare_blocks=margin)

    def _prefill(self, blocks: Blocks, done: set[Request]) -> list[Chunk]:
        budget, chunks = self._max_batch_tokens - len(done), []
        for request in self._queue.running():
            if budget == 0 or request.loading or request in done:
                continue
            num_tokens = blocks.extend(request, min(request.num_uncomputed, budget))
            if num_tokens:
                chunks.append(Chunk(request, num_tokens))
                budget -= num_tokens
        return chunks

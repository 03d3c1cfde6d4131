"""Which tokens a decode step computes: continuous batching, with preemption when blocks run out."""

from __future__ import annotations

from collections.abc import Sequence

from model_runner.types import Blocks, Chunk, Request


class DecodeScheduler:
    """Implements `Scheduler` for requests that stream tokens.

    A step computes one token of every running sequence first, oldest first; what is left of the
    budget goes to prompts (and to what a preempted sequence lost), so that a long prompt delays the
    streams by a bounded step. The oldest request never loses its blocks to another one: it runs to
    its end, then the next is the oldest, so that every request finishes.
    """

    def __init__(self, *, max_batch_tokens: int, max_running: int) -> None:
        assert max_batch_tokens >= 1
        assert max_running >= 1
        self._max_batch_tokens = max_batch_tokens
        self._max_running = min(max_running, max_batch_tokens)
        self._arrivals = 0
        self._arrival: dict[Request, int] = {}
        self._waiting: list[Request] = []
        self._running: list[Request] = []

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def add(self, request: Request) -> None:
        assert request not in self._arrival
        self._arrival[request] = self._arrivals
        self._arrivals += 1
        self._waiting.append(request)

    def remove(self, request: Request) -> None:
        if self._arrival.pop(request, None) is None:
            return
        queue = self._running if request in self._running else self._waiting
        queue.remove(request)

    def schedule(self, blocks: Blocks) -> Sequence[Chunk]:
        num_running = len(self._running)
        chunks = self._decode(blocks)
        if len(self._running) == num_running:
            self._admit(blocks)
        return chunks + self._prefill(blocks, [chunk.request for chunk in chunks])

    def _decode(self, blocks: Blocks) -> list[Chunk]:
        """One token of each running sequence. Whoever runs out of blocks takes those of the
        youngest."""
        decoding = [r for r in self._running if not r.loading and r.num_uncomputed == 1]
        decoding.sort(key=self._arrival.__getitem__)
        return [
            Chunk(request, 1)
            for request in decoding
            if request in self._running and self._make_room(request, blocks)
        ]

    def _make_room(self, request: Request, blocks: Blocks) -> bool:
        """False if it must wait: for older sequences, for loads, or for blocks being published."""
        while not blocks.extend(request):
            age = self._arrival[request]
            younger = [r for r in self._running if self._arrival[r] > age and not r.loading]
            if not younger:
                return False
            self._preempt(max(younger, key=self._arrival.__getitem__), blocks)
        return True

    def _preempt(self, request: Request, blocks: Blocks) -> None:
        blocks.release(request)
        request.num_preemptions += 1
        self._running.remove(request)
        self._waiting.append(request)

    def _admit(self, blocks: Blocks) -> None:
        """Oldest first; nobody overtakes one that does not fit. Each running sequence is left the
        block that it may need next, lest admission causes the next preemption."""
        self._waiting.sort(key=self._arrival.__getitem__)
        while self._waiting and len(self._running) < self._max_running:
            if not blocks.admit(self._waiting[0], spare_blocks=len(self._running)):
                return
            self._running.append(self._waiting.pop(0))

    def _prefill(self, blocks: Blocks, decoding: Sequence[Request]) -> list[Chunk]:
        budget, chunks = self._max_batch_tokens - len(decoding), []
        done = set(decoding)
        for request in sorted(self._running, key=self._arrival.__getitem__):
            if budget == 0 or request.loading or request in done or not blocks.extend(request):
                continue
            chunks.append(Chunk(request, min(request.num_uncomputed, budget)))
            budget -= chunks[-1].num_tokens
        return chunks

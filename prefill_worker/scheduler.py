"""Which prompts a prefill step computes: chunked, several at a time, shortest first with ageing."""

from __future__ import annotations

from collections.abc import Sequence

from model_runner.types import Blocks, Chunk, Request


class PrefillScheduler:
    """Implements `Scheduler` for requests that end with their prompt.

    The smallest rank goes first, both into the device tier and into a step:

        rank = tokens still to compute + ageing x step at which it arrived

    A short prompt thus overtakes a long one, but only while it is not much younger: whoever waits
    gains on all that come later. Who heads the queue and finds too little room is waited for, so
    that room is not given away in small pieces before it. All blocks of a prompt are taken at
    admission, so that a running prompt never lacks one and nothing is preempted.
    """

    def __init__(self, *, max_batch_tokens: int, max_running: int) -> None:
        assert max_batch_tokens >= 1
        assert max_running >= 1
        self._max_batch_tokens = max_batch_tokens
        self._max_running = max_running
        self._ageing_tokens = max(1, max_batch_tokens // 8)
        self._step = 0
        self._arrival_step: dict[Request, int] = {}
        self._waiting: list[Request] = []
        self._running: list[Request] = []

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def add(self, request: Request) -> None:
        assert request not in self._arrival_step
        self._arrival_step[request] = self._step
        self._waiting.append(request)

    def remove(self, request: Request) -> None:
        if self._arrival_step.pop(request, None) is None:
            return
        queue = self._running if request in self._running else self._waiting
        queue.remove(request)

    def schedule(self, blocks: Blocks) -> Sequence[Chunk]:
        self._step += 1
        self._admit(blocks)
        return self._chunks()

    def _rank(self, request: Request) -> int:
        return request.num_uncomputed + self._ageing_tokens * self._arrival_step[request]

    def _admit(self, blocks: Blocks) -> None:
        self._waiting.sort(key=self._rank)
        while self._waiting and len(self._running) < self._max_running:
            if not blocks.admit(self._waiting[0]):
                return
            self._running.append(self._waiting.pop(0))

    def _chunks(self) -> list[Chunk]:
        budget, chunks = self._max_batch_tokens, []
        for request in sorted(self._running, key=self._rank):
            num_tokens = 0 if request.loading else min(request.num_uncomputed, budget)
            if num_tokens:
                chunks.append(Chunk(request, num_tokens))
                budget -= num_tokens
        return chunks

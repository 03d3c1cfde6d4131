"""Which prompts a prefill step computes: chunked, several at a time, shortest first with ageing."""

from __future__ import annotations

from collections.abc import Sequence

from model_runner.request_queue import RequestQueue
from model_runner.types import Blocks, Chunk, Request

_HEAD_START_STEPS = 64
"""What a level of priority is worth."""


class PrefillScheduler:
    """Implements `Scheduler` for requests that end with their prompt.

    The smallest rank goes first, both into the device tier and into a step:

        rank = tokens still to compute + ageing x (step at which it arrived - head start)

    A short prompt thus overtakes a long one, but only while it is not much younger: whoever waits
    gains on all that come later. Priority is a head start, and no more. All blocks of a prompt are
    taken at admission, so that a running prompt never lacks one and nothing is preempted. Where a
    window is all that is kept, a prompt may have to wait for blocks that others are done with; some
    prompt always has its next one, as each was given all that a window shows.
    """

    def __init__(self, *, max_batch_tokens: int, max_running: int) -> None:
        assert max_batch_tokens >= 1
        self._max_batch_tokens = max_batch_tokens
        self._ageing_tokens = max(1, max_batch_tokens // 8)
        self._step = 0
        self._queue = RequestQueue(max_running, work_left=lambda request: request.num_uncomputed)

    @property
    def num_running(self) -> int:
        return self._queue.num_running

    @property
    def num_waiting(self) -> int:
        return self._queue.num_waiting

    def add(self, request: Request) -> None:
        since = self._step - _HEAD_START_STEPS * request.priority
        self._queue.add(request, self._ageing_tokens * since)

    def remove(self, request: Request) -> None:
        self._queue.remove(request)

    def schedule(self, blocks: Blocks) -> Sequence[Chunk]:
        self._step += 1
        self._queue.admit(blocks.admit)
        return self._chunks(blocks)

    def _chunks(self, blocks: Blocks) -> list[Chunk]:
        budget, chunks = self._max_batch_tokens, []
        for request in self._queue.running():
            if request.loading or not budget:
                continue
            num_tokens = blocks.extend(request, min(request.num_uncomputed, budget))
            if num_tokens:
                chunks.append(Chunk(request, num_tokens))
                budget -= num_tokens
        return chunks

"""Sequences that a worker runs while something else happens, and when their tokens came."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from contextlib import aclosing

from cluster.bench.engine_worker import WorkerClient
from kvstore.core.errors import DeadlineExceededError, KVStoreError

STALL_S = 300.0
_POLL_S = 0.05
_LAST_WORDS_S = 0.2
"""gRPC tells of cancelled calls a moment later, and complains if their loop is gone by then."""


class Streams:
    """They run from construction to `stop`, on one event loop.

    A measurement raises KVStoreError if a sequence came to its end meanwhile, and what ended it.
    """

    def __init__(self, worker: WorkerClient, prompts: list[list[int]], max_tokens: int) -> None:
        self._times_s: list[list[float]] = [[] for _ in prompts]
        self._tasks = [
            asyncio.create_task(self._listen(worker, prompt, max_tokens, times_s))
            for prompt, times_s in zip(prompts, self._times_s, strict=True)
        ]

    async def gaps_of(self, num_tokens: int) -> list[float]:
        """Of the next so many tokens of each sequence."""
        before = self._counts()

        async def enough() -> None:
            while any(
                now - was < num_tokens for now, was in zip(self._counts(), before, strict=True)
            ):
                self._raise_if_ended()
                await asyncio.sleep(_POLL_S)

        return await self.gaps_during(enough())

    async def gaps_during(self, work: Awaitable[None]) -> list[float]:
        """Seconds between two tokens of one sequence, the second of which came meanwhile."""
        before = self._counts()
        try:
            async with asyncio.timeout(STALL_S):
                await work
        except TimeoutError as error:
            raise DeadlineExceededError(
                f"bench engine: the running sequences, or the prompt, took over {STALL_S:g} s"
            ) from error
        self._raise_if_ended()
        return [
            after - earlier
            for times_s, count in zip(self._times_s, before, strict=True)
            for earlier, after in zip(times_s[count - 1 :], times_s[count:], strict=False)
            if count
        ]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(_LAST_WORDS_S)

    async def _listen(
        self, worker: WorkerClient, prompt: list[int], max_tokens: int, times_s: list[float]
    ) -> None:
        async with aclosing(worker.stream(prompt, max_tokens)) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                times_s += [time.perf_counter()] * len(chunk.token_ids)

    def _counts(self) -> list[int]:
        return [len(times_s) for times_s in self._times_s]

    def _raise_if_ended(self) -> None:
        for task in self._tasks:
            if task.done():
                task.result()
                raise KVStoreError("bench engine: a running sequence reached its end too early")

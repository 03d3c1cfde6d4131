"""Copies and checksums: in place while they are short, on threads when they would hold up the
loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from typing import TypeVar

A = TypeVar("A")
T = TypeVar("T")

INLINE_BYTES = 256 << 10
"""About 50 us of copying and checksumming: what a hop to a thread and back costs."""
SHARED_BYTES = 8 << 20
"""About 2 ms of copying: from here on it pays to have a second thread do a part of it."""
THREADS = 2


async def run_sized(executor: Executor, size_bytes: int, work: Callable[[A], T], argument: A) -> T:
    """Run `work` once. A caller that is cancelled leaves only when it is done: nothing writes into
    memory whose owner was told otherwise."""
    if size_bytes <= INLINE_BYTES:
        return work(argument)
    future = asyncio.get_running_loop().run_in_executor(executor, work, argument)
    return (await _all_ended([future], lambda: None))[0]


async def run_shared(
    executor: Executor, size_bytes: int, work: Callable[[Iterator[A]], T], items: Sequence[A]
) -> list[T]:
    """Run `work` over `items`, on THREADS threads if there is enough to do. Each takes the next
    item when it is done with one, so that a thread that gets no processor holds up nobody.

    A caller that is cancelled leaves when each thread is done with the item that it is at.
    """
    left = iter(items)
    if size_bytes <= INLINE_BYTES:
        return [work(left)]
    loop = asyncio.get_running_loop()
    threads = THREADS if size_bytes >= SHARED_BYTES else 1
    futures = [loop.run_in_executor(executor, work, left) for _ in range(threads)]
    return await _all_ended(futures, lambda: _exhaust(left))


async def _all_ended(futures: Sequence[asyncio.Future[T]], hurry: Callable[[], object]) -> list[T]:
    """Results of all, or the first one's error, once every one of them is over."""
    cancelled: asyncio.CancelledError | None = None
    while left := [future for future in futures if not future.done()]:
        try:
            await asyncio.wait(left)
        except asyncio.CancelledError as error:
            cancelled = error
            hurry()
    if cancelled is not None:
        raise cancelled
    return [future.result() for future in futures]


def _exhaust(items: Iterator[object]) -> None:
    for _ in items:
        pass

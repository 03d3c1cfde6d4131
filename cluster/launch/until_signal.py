"""Runs something until SIGINT or SIGTERM, and always stops it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Startable(Protocol):
    async def start(self) -> None: ...

    async def stop(self) -> None:
        """Also after a failed or cancelled start. Bounded in time."""


@contextmanager
def cancelled_by_signal() -> Iterator[None]:
    """The first SIGINT or SIGTERM cancels the current task; later ones do not disturb its cleanup.

    For the main thread of a process, on a running loop.
    """
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None
    interrupted = False

    def interrupt() -> None:
        nonlocal interrupted
        if not interrupted:
            interrupted = True
            task.cancel()

    for number in SIGNALS:
        loop.add_signal_handler(number, interrupt)
    try:
        yield
    finally:
        for number in SIGNALS:
            loop.remove_signal_handler(number)


async def run_until_signal(service: Startable, announce: Callable[[], None]) -> None:
    """Start, announce, wait for a signal, stop. Raises what `start` or `stop` raises."""
    with cancelled_by_signal():
        try:
            await service.start()
            announce()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass  # the signal: ending is what was asked for
        finally:
            await service.stop()

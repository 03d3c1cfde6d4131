"""Threads for calls into a medium that may hang."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class DiskThreads(Executor):
    """An executor whose threads do not hold up the end of the process: a call that never comes back
    costs its thread and no more. `shutdown(wait=False)`, then `join`, leave such a call behind.

    Bound: `count` calls at a time. The queue in front of them has none of its own; callers do.
    """

    def __init__(self, count: int, name: str) -> None:
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._shut = False
        self._threads = [
            threading.Thread(target=_work, args=(self._calls,), name=f"{name}-{i}", daemon=True)
            for i in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        call = _Call(partial(fn, *args, **kwargs))
        with self._lock:
            if self._shut:
                raise RuntimeError("submitted after shutdown")
            self._calls.put(call)
        return call.future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        with self._lock:
            if cancel_futures:
                self._cancel_queued()
            if not self._shut:
                self._shut = True
                for _ in self._threads:
                    self._calls.put(None)
        if wait:
            self.join(None)

    def join(self, timeout_s: float | None) -> bool:
        """After `shutdown`: whether all calls came back within that time (None = however long)."""
        end_s = None if timeout_s is None else time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(None if end_s is None else max(end_s - time.monotonic(), 0))
        return not any(thread.is_alive() for thread in self._threads)

    def _cancel_queued(self) -> None:
        kept = 0
        while True:
            try:
                call = self._calls.get_nowait()
            except Empty:
                break
            if call is None:
                kept += 1
            else:
                call.future.cancel()
        for _ in range(kept):
            self._calls.put(None)


class _Call:
    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work
        self.future: Future[Any] = Future()

    def run(self) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            result = self._work()
        except BaseException as error:  # the caller's, whatever it is
            self.future.set_exception(error)
        else:
            self.future.set_result(result)


def _work(calls: SimpleQueue[_Call | None]) -> None:
    while (call := calls.get()) is not None:
        call.run()
        del call  # what it refers to must not wait for the next one

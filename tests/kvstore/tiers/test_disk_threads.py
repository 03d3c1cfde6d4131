"""Threads whose calls may never come back."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from kvstore.tiers.disk.threads import DiskThreads


def test_results_and_errors_come_back() -> None:
    threads = DiskThreads(2, "test")
    assert list(threads.map(abs, [-1, -2, -3])) == [1, 2, 3]
    with pytest.raises(ZeroDivisionError):
        threads.submit(divmod, 1, 0).result(20)
    threads.shutdown()
    threads.shutdown()
    with pytest.raises(RuntimeError, match="shutdown"):
        threads.submit(abs, 1)


def test_what_was_submitted_is_done_before_the_threads_end() -> None:
    threads = DiskThreads(1, "test")
    gate = threading.Event()
    calls = [threads.submit(gate.wait, 20), *(threads.submit(abs, i) for i in range(10))]
    gate.set()
    threads.shutdown()
    assert all(call.done() for call in calls)


def test_what_is_queued_can_be_cancelled() -> None:
    threads = DiskThreads(1, "test")
    gate, running = threading.Event(), threading.Event()
    threads.submit(lambda: running.set() or gate.wait(20))
    assert running.wait(20)
    queued = threads.submit(abs, 1)
    given_up = threads.submit(abs, 2)
    given_up.cancel()
    threads.shutdown(wait=False)
    threads.shutdown(wait=False, cancel_futures=True)
    assert not threads.join(0)
    gate.set()
    assert threads.join(20)
    assert queued.cancelled()
    assert given_up.cancelled()


def test_a_call_that_hangs_does_not_hold_up_the_end_of_the_process() -> None:
    program = """
import threading
from kvstore.tiers.disk.threads import DiskThreads
threads = DiskThreads(2, "test")
hanging = threads.submit(threading.Event().wait)
assert threads.submit(abs, -1).result(20) == 1
threads.shutdown(wait=False)
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == 0

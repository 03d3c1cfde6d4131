"""Knowing when a process can no longer write."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace

from kvstore.transports.process import ProcessIdentity, this_process


def _start_ticks(pid: int) -> int:
    with open(f"/proc/{pid}/stat") as stat:
        return int(stat.read().rpartition(") ")[2].split()[19])


def test_this_process_can_run():
    assert this_process().pid == os.getpid()
    assert this_process().can_run()


def test_a_reused_pid_is_told_apart():
    assert not replace(this_process(), start_ticks=this_process().start_ticks + 1).can_run()


def test_a_stopped_process_can_run_again_and_a_killed_one_cannot():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = ProcessIdentity(child.pid, _start_ticks(child.pid))
    try:
        assert process.can_run()
        child.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED)
        assert process.can_run()
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert not process.can_run(), "a zombie"
    finally:
        child.kill()
        child.communicate()
    assert not process.can_run(), "gone"

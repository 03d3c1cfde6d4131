"""Which process a peer on this host is: a pid and its start time, so that a reused pid is told
apart."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    pid: int
    start_ticks: int
    """Clock ticks since boot, as in /proc/<pid>/stat."""

    def can_run(self) -> bool:
        """Whether any thread of that process may still execute.

        A stopped process can run again. A zombie cannot, unless only its first thread ended.
        """
        status = _read_status(self.pid)
        if status is None or status.start_ticks != self.start_ticks:
            return False
        return status.state not in "ZX" or status.num_threads > 1


def this_process() -> ProcessIdentity:
    status = _read_status(os.getpid())
    assert status is not None, "/proc is needed"
    return ProcessIdentity(os.getpid(), status.start_ticks)


@dataclass(frozen=True, slots=True)
class _Status:
    state: str
    num_threads: int
    start_ticks: int


def _read_status(pid: int) -> _Status | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field is the command in parentheses and may hold anything: count after its end.
    fields = text.rpartition(b") ")[2].split()
    return _Status(fields[0].decode(), int(fields[17]), int(fields[19]))

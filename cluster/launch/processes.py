"""Which processes descend from this one, so that a launcher can prove that it left none."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from kvstore.transports.process import ProcessIdentity

POLL_S = 0.05
KILL_DEADLINE_S = 2.0


def descendants() -> frozenset[ProcessIdentity]:
    """Children of this process, their children, and so on, that live now. Linux only."""
    children: dict[int, list[ProcessIdentity]] = defaultdict(list)
    for entry in Path("/proc").glob("[0-9]*"):
        for parent, child in _read(entry):
            children[parent].append(child)
    found: set[ProcessIdentity] = set()
    frontier = [os.getpid()]
    while frontier:
        new = [child for child in children[frontier.pop()] if child not in found]
        found.update(new)
        frontier.extend(child.pid for child in new)
    return frozenset(found)


def alive(processes: Iterable[ProcessIdentity]) -> list[ProcessIdentity]:
    return [process for process in processes if process.can_run()]


async def end(processes: Iterable[ProcessIdentity], grace_s: float) -> None:
    """Wait `grace_s` for them to end by themselves, then kill those that have not.

    Pass only processes that the caller started.
    """
    await _ended(processes, grace_s)
    for process in alive(processes):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    await _ended(processes, KILL_DEADLINE_S)


async def _ended(processes: Iterable[ProcessIdentity], deadline_s: float) -> None:
    for _ in range(int(deadline_s / POLL_S)):
        if not alive(processes):
            return
        await asyncio.sleep(POLL_S)


def _read(entry: Path) -> Iterable[tuple[int, ProcessIdentity]]:
    """(parent's pid, process) of a folder of /proc; nothing if the process has just ended."""
    try:
        text = (entry / "stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return
    # The second field is the command in parentheses and may hold anything: count after its end.
    fields = text.rpartition(b") ")[2].split()
    yield int(fields[1]), ProcessIdentity(int(entry.name), int(fields[19]))

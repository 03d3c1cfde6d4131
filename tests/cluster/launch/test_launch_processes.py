from __future__ import annotations

import asyncio
import subprocess
import sys

from cluster.launch.processes import alive, descendants, end

SLEEPER = "import sys, time; print('up', flush=True); time.sleep(600)"
PARENT_OF_SLEEPER = (
    "import subprocess, sys\n"
    f"child = subprocess.Popen([sys.executable, '-c', {SLEEPER!r}])\n"
    "child.wait()\n"
)


def test_finds_and_ends_children_and_grandchildren() -> None:
    before = descendants()
    with subprocess.Popen(
        [sys.executable, "-c", PARENT_OF_SLEEPER], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        started = descendants() - before
        assert process.pid in {p.pid for p in started}
        assert len(alive(started)) == len(started) == 2
        asyncio.run(end(started, grace_s=0.1))
    assert alive(started) == []


def test_those_that_end_by_themselves_are_waited_for() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        mine = [p for p in descendants() if p.pid == process.pid]
        assert alive(mine) == mine
        assert process.stdin is not None
        process.stdin.close()
        asyncio.run(end(mine, grace_s=30))
        assert process.wait() != -9
    assert alive(mine) == []

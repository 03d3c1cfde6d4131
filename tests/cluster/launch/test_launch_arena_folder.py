"""Arena folders of launchers that were killed do not pile up."""

from __future__ import annotations

import os
import subprocess
import sys

from cluster.launch.arena_folder import make_arena_folder
from kvstore.tiers.host.arena import Arena

MIB = 1 << 20


def _dead_pid() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_folders_of_dead_launchers_go_but_for_arenas_in_use(tmp_path):
    pid = _dead_pid()
    abandoned = tmp_path / f"kvstore-{pid}-abandoned"
    abandoned.mkdir()
    (abandoned / "kvstore-arena-0").write_bytes(b"left by a killed node")
    in_use = tmp_path / f"kvstore-{pid}-in-use"
    in_use.mkdir()
    arena = Arena(in_use, MIB)
    foreign = tmp_path / "kvstore-notes"
    foreign.mkdir()
    mine = make_arena_folder(tmp_path)
    try:
        assert not abandoned.exists()
        assert in_use.exists()
        assert foreign.exists()
        assert mine.name.startswith(f"kvstore-{os.getpid()}-")
        assert make_arena_folder(tmp_path) != mine
        assert mine.exists(), "this process lives"
    finally:
        arena.close()

"""A folder for the arena of one launch: whatever happens to the node, its arena goes with it."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from kvstore.tiers.host.arena_file import remove_abandoned


def make_arena_folder(parent: Path) -> Path:
    """A new folder in `parent`, named after this process. Those of launchers that were killed go,
    unless a node still uses an arena in them."""
    for folder in parent.glob("kvstore-[0-9]*-*"):
        if not Path("/proc", folder.name.split("-")[1]).exists():
            remove_abandoned(folder)
            with contextlib.suppress(OSError):  # not empty, another user's, or gone meanwhile
                folder.rmdir()
    return Path(tempfile.mkdtemp(prefix=f"kvstore-{os.getpid()}-", dir=parent))

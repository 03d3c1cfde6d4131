"""What several folders of tests need from the machine: a redis-server, a small filesystem."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvstore.testing.redis_server import PROGRAM, RedisServer


@pytest.fixture(scope="module")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One for each test module."""
    if PROGRAM is None:
        pytest.skip("redis-server is missing: sudo apt-get install redis-server")
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def small_filesystem(tmp_path: Path) -> Iterator[Path]:
    """A folder that is a filesystem of 4 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a filesystem takes root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)

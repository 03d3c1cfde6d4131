"""A real redis-server for tests: on a free port, in a folder of its own."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from kvstore.core.errors import ConfigurationError, UnavailableError

_START_S = 20.0
_BIND_ATTEMPTS = 5

PROGRAM = shutil.which("redis-server")
"""None where it is not installed: `sudo apt-get install redis-server`."""


class RedisServer:
    """A context manager: it runs inside. Keeps nothing on disk unless `arguments` say so.

    `kill` and `start` again give an empty server at the same address; `pause` makes it hang:
    connections are taken, and nothing is answered.
    """

    def __init__(
        self, folder: Path, *, arguments: Sequence[str] = (), port_option: str = "--port"
    ) -> None:
        if PROGRAM is None:
            raise ConfigurationError("redis-server is missing: sudo apt-get install redis-server")
        self.port = _free_port()
        self._folder = folder
        self._port_option = port_option
        self._arguments = list(arguments)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Returns when it accepts connections."""
        for _ in range(_BIND_ATTEMPTS):
            self._process = self._spawn()
            if self._accepts(self._process):
                return
            self.port = _free_port()  # somebody else took it meanwhile
        raise UnavailableError(f"redis-server does not start; see {self._log}")

    def stop(self) -> None:
        """Idempotent."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    kill = stop
    """As kill -9 does; what was not saved is lost."""

    def pause(self) -> None:
        assert self._process is not None, "started"
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None, "started"
        self._process.send_signal(signal.SIGCONT)

    @property
    def _log(self) -> Path:
        return self._folder / "redis.log"

    def _spawn(self) -> subprocess.Popen[bytes]:
        assert self._process is None, "started already"
        assert PROGRAM is not None
        quiet = ["--save", "", "--bind", "127.0.0.1", "--logfile", str(self._log)]
        address = ["--port", "0", self._port_option, str(self.port), "--dir", str(self._folder)]
        return subprocess.Popen([PROGRAM, *quiet, *address, *self._arguments])

    def _accepts(self, process: subprocess.Popen[bytes]) -> bool:
        """Whether it came up; False if it ended instead."""
        deadline = time.monotonic() + _START_S
        while process.poll() is None and time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return True
            time.sleep(0.01)
        self.stop()
        return False

    def __enter__(self) -> RedisServer:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

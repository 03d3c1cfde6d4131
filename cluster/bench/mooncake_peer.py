"""Our side of `mooncake_driver`: a peer in an environment of its own, that is told what to do."""

from __future__ import annotations

import json
import select
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.bench import mooncake_driver
from kvstore.core.errors import ConfigurationError

COMMAND_S = 60.0
STOP_S = 10.0


class MooncakePeer:
    """Commands of `mooncake_driver.Peer`; each returns what that one does."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def command(self, verb: str, **arguments: Any) -> Any:
        """Raises ConfigurationError if the peer ends, or does not answer in COMMAND_S."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"verb": verb} | arguments) + "\n")
        self._process.stdin.flush()
        return json.loads(self.wait_for("{"))["result"]

    def wait_for(self, start: str) -> str:
        """The next line that starts so: Mooncake logs what it likes in between."""
        assert self._process.stdout is not None
        while True:
            if not select.select([self._process.stdout], [], [], COMMAND_S)[0]:
                raise ConfigurationError(f"Mooncake did not answer within {COMMAND_S:g} s")
            line = self._process.stdout.readline()
            if not line:
                raise ConfigurationError(
                    "Mooncake's Python ended; see whether it runs "
                    f"{Path(mooncake_driver.__file__).name}"
                )
            if line.startswith(start):
                return line


@contextmanager
def mooncake_peer(python: Path) -> Iterator[MooncakePeer]:
    """Mooncake Store in the environment of `python`: its master, a process that stores, a client.

    Raises ConfigurationError if it does not start.
    """
    process = subprocess.Popen(
        [python, mooncake_driver.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=1,
        text=True,
    )
    try:
        peer = MooncakePeer(process)
        peer.wait_for("ready")
        yield peer
    finally:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()  # it takes its own processes with it
        try:
            process.wait(STOP_S)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()

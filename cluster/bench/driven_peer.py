"""A peer in an environment of its own, that is told what to do: one JSON object a line each way."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kvstore.core.errors import ConfigurationError

COMMAND_S = 60.0
STOP_S = 10.0


class DrivenPeer:
    """Commands of a driver; each returns what that one does."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], answer_s: float) -> None:
        self._name = name
        self._process = process
        self._answer_s = answer_s
        self._unread = b""

    def command(self, verb: str, **arguments: Any) -> Any:
        """Raises ConfigurationError if the peer ends, or does not answer in time."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"verb": verb} | arguments).encode() + b"\n")
        self._process.stdin.flush()
        return json.loads(self.wait_for("{"))["result"]

    def wait_for(self, start: str) -> str:
        """The next line that starts so: peers log what they like in between."""
        end_s = time.monotonic() + self._answer_s
        while True:
            line, newline, rest = self._unread.partition(b"\n")
            if not newline:
                self._read_more(end_s)
                continue
            self._unread = rest
            if line.startswith(start.encode()):
                return line.decode()

    def _read_more(self, end_s: float) -> None:
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        if not select.select([pipe], [], [], max(0.0, end_s - time.monotonic()))[0]:
            raise ConfigurationError(f"{self._name} did not answer in {self._answer_s:g} s")
        more = os.read(pipe, 1 << 16)
        if not more:
            raise ConfigurationError(
                f"{self._name}'s Python ended; see whether it runs {self._driver}"
            )
        self._unread += more

    def pause(self) -> None:
        """It stands still until `go_on`, so that none of its threads takes time from others."""
        os.kill(self._process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)

    def go_on(self) -> None:
        os.kill(self._process.pid, signal.SIGCONT)

    def kill(self) -> None:
        """As a crash would end it: it answers no more."""
        self._process.kill()
        self._process.wait()

    @property
    def _driver(self) -> str:
        assert isinstance(self._process.args, list)
        return Path(str(self._process.args[1])).name


@contextmanager
def driven_peer(
    name: str,
    python: Path,
    driver: Path,
    arguments: Sequence[str] = (),
    *,
    environment: Mapping[str, str] | None = None,
    answer_s: float = COMMAND_S,
) -> Iterator[DrivenPeer]:
    """`driver`, run by the Python that the peer is installed in; ready for commands. It ends when
    its stdin does.

    Raises ConfigurationError if it does not start.
    """
    process = subprocess.Popen(
        [str(python), str(driver), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **(environment or {})},
    )
    peer = DrivenPeer(name, process, answer_s)
    try:
        peer.wait_for("ready")
        yield peer
    finally:
        _end(peer, process)


def _end(peer: DrivenPeer, process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()  # it takes its own processes with it
    if process.poll() is None:
        peer.go_on()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    finally:
        process.stdout.close()

"""The processes of a chaos run: quickly started, stopped, killed."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess

from kvstore.node.config import NodeConfig
from kvstore.node.daemon import Node, serve
from kvstore.testing.chaos_clients import SETTLE_S


@contextmanager
def node_process(config: NodeConfig) -> Iterator[ForkServerProcess]:
    """A node that serves; killed at the end, if it was not before."""
    ours, theirs = multiprocessing.Pipe()
    process = start(_serve, config, theirs)
    try:
        if not ours.poll(SETTLE_S):
            raise RuntimeError("the node did not come up")
        yield process
    finally:
        kill(process)


def _serve(config: NodeConfig, pipe: Connection) -> None:
    def ready(node: Node) -> None:
        pipe.send(True)

    asyncio.run(serve(config, ready))


def start(work: Callable[..., None], *arguments: object) -> ForkServerProcess:
    process = _fork_server().Process(target=work, args=arguments, daemon=True)
    process.start()
    return process


def _fork_server() -> ForkServerContext:
    """Forks from a process that has all modules imported and no thread yet: a start costs 20 ms."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kvstore.testing.chaos_processes"])
    return context


def stall(process: ForkServerProcess) -> None:
    """It stands still until `go_on`, and does not know."""
    _send(process, signal.SIGSTOP)


def go_on(process: ForkServerProcess) -> None:
    _send(process, signal.SIGCONT)


def kill(*processes: ForkServerProcess) -> None:
    """All at once, stalled ones too. Idempotent; a process that ended by itself keeps its exit
    status."""
    for process in processes:
        _send(process, signal.SIGKILL)
    for process in processes:
        process.join(SETTLE_S)


def _send(process: ForkServerProcess, number: signal.Signals) -> None:
    if process.is_alive() and process.pid is not None:
        os.kill(process.pid, number)

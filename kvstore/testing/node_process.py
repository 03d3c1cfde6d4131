"""A node in a process of its own, to be stopped, continued and killed."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection

from kvstore.events.null import NullEventSink
from kvstore.node.config import NodeConfig
from kvstore.node.daemon import Node

START_S = 30.0


@dataclass(frozen=True)
class NodeProcess:
    pid: int
    zmq_endpoint: str
    bulk_endpoint: str
    grpc_address: str

    def pause(self) -> None:
        """Every thread of it stands still when this returns."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED)

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


@contextmanager
def node_process(config: NodeConfig) -> Iterator[NodeProcess]:
    """A started node; killed at the end. Its arena's folder must be cleared by the caller."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(config, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        assert ours.poll(START_S), "the node did not start in time"
        assert process.pid is not None
        yield NodeProcess(process.pid, *ours.recv())
    finally:
        process.kill()
        process.join()
        process.close()
        ours.close()


def _serve(config: NodeConfig, pipe: Connection) -> None:
    asyncio.run(_run(config, pipe))


async def _run(config: NodeConfig, pipe: Connection) -> None:
    node = Node(config, sink=NullEventSink())
    await node.start()
    pipe.send((node.zmq_endpoint, node.bulk_endpoint, node.grpc_address))
    await asyncio.Event().wait()

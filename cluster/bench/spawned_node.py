"""A node in a process of its own, as those who use one have it."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from kvstore.core.errors import ConfigurationError
from kvstore.node.config import NodeConfig
from kvstore.node.daemon import Node

START_S = 30.0
STOP_S = 10.0


@contextmanager
def spawned_node(folder: Path, name: str = "bench", **settings: Any) -> Iterator[str]:
    """The endpoint of a node, over ipc unless `settings` say otherwise. It ends with the context.

    Raises ConfigurationError if the node does not start.
    """
    config = NodeConfig.model_validate(
        {"node_id": name, "zmq_endpoint": f"ipc://{folder}/{name}.sock"} | settings
    )
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_run, args=(config, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        yield _endpoint(ours)
    finally:
        ours.close()
        process.join(STOP_S)
        process.kill()
        process.join()


def _endpoint(pipe: Connection) -> str:
    try:
        if pipe.poll(START_S):
            return str(pipe.recv())
    except EOFError:
        pass
    raise ConfigurationError("the node that is to be measured did not start; see what it logged")


def _run(config: NodeConfig, pipe: Connection) -> None:
    asyncio.run(_serve(config, pipe))


async def _serve(config: NodeConfig, pipe: Connection) -> None:
    """Until the other end of the pipe is closed, or its process is gone."""
    node = Node(config)
    await node.start()
    pipe.send(node.zmq_endpoint)
    try:
        await asyncio.to_thread(pipe.poll, None)
    finally:
        await node.stop()

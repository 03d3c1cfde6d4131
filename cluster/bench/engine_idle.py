"""`kvstore bench engine`: what a worker costs that has nothing to do, and how soon it is there."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from cluster.bench.case import BenchOptions, Case
from cluster.bench.engine_setup import (
    FULL,
    EngineSize,
    Prompts,
    model_folder,
    vocab_size,
    worker_config,
)
from cluster.bench.engine_worker import BlockingClient, spawned_worker
from cluster.bench.spawned_node import spawned_node

IDLE, START = "idle_cpu_percent", "start_to_ready_s"
SETTLE_S = 2.0
WATCH_S = 5.0
_HOST_BYTES = 256 << 20


def engine_idle(options: BenchOptions, size: EngineSize = FULL) -> Iterator[Case]:
    """A decode worker with a node, that has answered a request."""
    if not options.wants(IDLE, START):
        return
    model = model_folder(options.folder, size.shape)
    with spawned_node(options.folder, "idle-node", host=_HOST_BYTES) as node:
        config = worker_config(model, size.blocks_of(size.long_tokens), node=node)
        with spawned_worker("decode", config) as worker:
            with closing(BlockingClient(worker)) as client:
                client.ask(Prompts(vocab_size(model)).one(size.short_tokens), size.short_tokens)
            time.sleep(SETTLE_S)
            percent = _cpu_percent(worker.pid, WATCH_S)
    note = f"of one core, over {WATCH_S:g} s; a decode worker with a node, after a request"
    yield Case(IDLE, percent, "%", note=note, goal="value < 1")
    note = "load and check the weights, connect to the node, listen; imports before it not counted"
    yield Case(START, worker.start_s, "s", note=note, goal="value <= 10")


def _cpu_percent(pid: int, watch_s: float) -> float:
    started_s, before_s = time.perf_counter(), cpu_seconds(pid)
    time.sleep(watch_s)
    return 100 * (cpu_seconds(pid) - before_s) / (time.perf_counter() - started_s)


def cpu_seconds(pid: int) -> float:
    """Of all threads of a process, in user mode and in the kernel, so far."""
    after_name = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    user, system = (int(after_name[index]) for index in (11, 12))
    return (user + system) / os.sysconf("SC_CLK_TCK")

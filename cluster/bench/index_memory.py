"""`kvstore bench index`: what a block costs in the index."""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from cluster.bench.case import BenchOptions, Case
from cluster.bench.index_dynamo_driver import BLOCKS, CHAINS, COPIES
from cluster.bench.index_workload import Workload

CASE = "bytes_per_block"
WORKERS = 64
_DEADLINE_S = 120.0


def index_memory(options: BenchOptions) -> Iterator[Case]:
    """In a process of its own, whose memory grows by nothing but the index."""
    if not options.wants(CASE):
        return
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        value = pool.submit(_bytes_per_block).result(_DEADLINE_S)
    note = f"{CHAINS * BLOCKS:,} different blocks, each at {COPIES} of {WORKERS} workers"
    yield Case(CASE, value, "bytes", note=note, goal="<= 250")


def _bytes_per_block() -> float:
    workload = Workload(WORKERS)
    gc.collect()
    before = _private_bytes()
    workload.insert()
    gc.collect()
    return (_private_bytes() - before) / len(workload.index)


def _private_bytes() -> int:
    status = Path("/proc/self/status").read_text("ascii")
    (anonymous,) = (line for line in status.splitlines() if line.startswith("RssAnon"))
    return int(anonymous.split()[1]) * 1024

"""`kvstore demo`: a cluster, a workload, and the proof that the cache changes only the time."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

import cluster
from cluster.demo.client import DemoClient
from cluster.demo.model import ModelFacts, build_model, read_facts
from cluster.demo.report import Outcome, summary, tables
from cluster.demo.runner import WorkloadRunner
from cluster.demo.sizing import demo_settings, demo_size
from cluster.demo.trace import TraceRequest, read_trace, synthetic_trace
from cluster.demo.workload import WorkloadSize
from cluster.launch.cluster import LocalCluster
from cluster.launch.processes import alive, descendants
from cluster.launch.until_signal import cancelled_by_signal
from kvstore.transports.process import ProcessIdentity

REQUEST_TIMEOUT_S = 60.0
DEFAULT_TRACE = Path("shared/traces/conversation_trace.jsonl.gz")
"""Beside the folder that the packages lie in; a made-up trace stands in where there is none."""

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


@dataclass(frozen=True)
class _Result:
    outcomes: list[Outcome]
    left: list[ProcessIdentity]
    """Processes that the demo started and that did not end."""


def run_demo(model: str | None, trace_file: Path | None) -> int:
    """Returns the exit status. Tables and progress go to stderr; the last line of stdout is one
    JSON object. Raises ConfigurationError for a model or trace that cannot be used."""
    console = Console(stderr=True)
    try:
        result = asyncio.run(_demo(model, _trace(trace_file), console))
    except asyncio.CancelledError:
        return INTERRUPTED
    console.print(tables(result.outcomes))
    for process in result.left:
        console.print(f"process {process.pid} did not end", style="red")
    figures = summary(result.outcomes)
    sys.stdout.write(json.dumps(figures) + "\n")
    return 0 if figures["identical"] and not figures["failed"] and not result.left else 1


def _trace(file: Path | None) -> list[TraceRequest]:
    default = Path(str(cluster.__file__)).parents[2] / DEFAULT_TRACE
    if file is None and not default.exists():
        return synthetic_trace(WorkloadSize.trace_requests)
    return read_trace(file or default, WorkloadSize.trace_requests)


async def _demo(model: str | None, trace: Sequence[TraceRequest], console: Console) -> _Result:
    def progress(text: str) -> None:
        console.print(f"[dim]·[/] {text}")

    with cancelled_by_signal(), tempfile.TemporaryDirectory(prefix="kvstore-demo-") as folder:
        # Not on threads: a thread cannot be interrupted, and would write into the folder after
        # its end. Nothing else runs on this loop yet.
        if model is None:
            progress("making a small model of random weights")
            model = str(build_model(Path(folder, "demo-model")))
        facts = read_facts(model)
        await asyncio.sleep(0)  # an interruption so far takes effect here
        return await run_on(facts, demo_size(facts), trace, Path(folder, "disk"), progress)


async def run_on(
    facts: ModelFacts,
    size: WorkloadSize,
    trace: Sequence[TraceRequest],
    disk_folder: Path,
    progress: Callable[[str], None],
) -> _Result:
    """Cluster up, workload, cluster down. Whatever happens, the cluster is gone afterwards."""
    before = descendants()
    started: frozenset[ProcessIdentity] = frozenset()
    local = LocalCluster(demo_settings(facts, size, disk_folder), progress)
    try:
        await local.start()
        started = descendants() - before
        async with DemoClient(local.base_url, local.model_name, REQUEST_TIMEOUT_S) as client:
            outcomes = await WorkloadRunner(client, size, progress).run(trace)
    finally:
        progress("stopping")
        await local.stop()
    return _Result(outcomes, alive(started))

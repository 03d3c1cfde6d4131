"""`kvstore bench simulator --trace FILE --peer dynamo=PYTHON`: good requests, beside Dynamo's.

Dynamo's offline mock cluster replays the same trace on the same shapes. Round-robin on both sides
shows how alike the two simulations are; where placement is not the same in detail, ours replays
what Dynamo chose, too. Then the default policy stands beside Dynamo's KV router.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.bench.case import BenchOptions, Case
from cluster.conductor.policies.base import Choice, Policy
from cluster.conductor.prospects import Prospects
from cluster.demo.trace import TraceRequest, read_trace
from cluster.simulator.profiles import dynamo_mocker_profile
from cluster.simulator.scenario import Scenario
from kvstore.core.errors import ConfigurationError

_TTFT_MS, _ITL_MS = 2000, 25
_REPLAY_S = 300.0
_ENGINE: Mapping[str, Any] = {"block_size": 64, "num_gpu_blocks": 16_384}
_SHAPES: Mapping[str, Mapping[str, int]] = {
    "8": {"workers": 8},
    "4p4d": {"prefill": 4, "decode": 4},
}
_SPEEDUPS = (1, 4)


def simulator(options: BenchOptions) -> Iterator[Case]:
    """Raises ConfigurationError: no trace, no peer, or one that does not run."""
    python = options.peers.get("dynamo")
    if options.trace is None or python is None:
        raise ConfigurationError(
            "simulator needs a workload and a peer: --trace FILE --peer dynamo=PYTHON, the"
            " interpreter of an environment that has ai-dynamo"
        )
    plain = _unpacked(options.trace, options.folder)
    trace = read_trace(plain, sys.maxsize)
    for shape, workers in _SHAPES.items():
        for speedup in _SPEEDUPS:
            peer = _Replay(python, plain, workers, speedup, options.folder)
            ours = Scenario(dynamo_mocker_profile()).varied(
                {
                    **workers,
                    "speedup": speedup,
                    "slo_ttft_ms": _TTFT_MS,
                    "slo_itl_ms": _ITL_MS,
                    "admission": "none",
                }
            )
            yield from _compare(f"{shape}_x{speedup}", ours, peer, trace)


def _compare(
    name: str, ours: Scenario, peer: _Replay, trace: Sequence[TraceRequest]
) -> Iterator[Case]:
    theirs = peer.run("round_robin")
    against = "Dynamo's mock cluster, round-robin"
    good = ours.varied({"policy": "round-robin"}).run(trace).good
    yield Case(f"round_robin_{name}", good, "good", theirs.good, against)
    good = ours.run(trace, policy=_AsPlaced(theirs.records, trace, peer.speedup)).good
    yield Case(f"as_placed_{name}", good, "good", theirs.good, against + ", its own placement")
    theirs = peer.run("kv_router")
    good = ours.varied({"policy": "joint"}).run(trace).good
    yield Case(f"joint_{name}", good, "good", theirs.good, "Dynamo's mock cluster, KV router")


class _Outcome:
    """What one replay reports."""

    def __init__(self, report: Path, records: Path) -> None:
        self.good: int = json.loads(report.read_text("utf-8"))["goodput_completed_requests"]
        self.records = [json.loads(line) for line in records.read_text("utf-8").splitlines()]


class _Replay:
    """Runs `dynamo.replay` on one shape."""

    def __init__(
        self, python: Path, trace: Path, workers: Mapping[str, int], speedup: int, folder: Path
    ) -> None:
        self.speedup = speedup
        self._report, self._records = folder / "dynamo.json", folder / "dynamo.jsonl"
        self._command = [
            *(str(python), "-m", "dynamo.replay", str(trace), "--replay-mode", "offline"),
            *("--trace-block-size", "512", "--arrival-speedup-ratio", str(speedup)),
            *("--sla-ttft-ms", str(_TTFT_MS), "--sla-itl-ms", str(_ITL_MS)),
            *("--report-json", str(self._report), "--report-jsonl", str(self._records)),
            *_shape_arguments(workers),
        ]

    def run(self, router: str) -> _Outcome:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "DYN_LOG": "error"}
        environment.pop("PYTHONPATH", None)
        try:
            subprocess.run(
                [*self._command, "--router-mode", router],
                check=True,
                capture_output=True,
                timeout=_REPLAY_S,
                env=environment,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise ConfigurationError(f"--peer dynamo: cannot replay with it: {error}") from error
        return _Outcome(self._report, self._records)


def _shape_arguments(workers: Mapping[str, int]) -> list[str]:
    if "workers" in workers:
        return ["--num-workers", str(workers["workers"]), "--extra-engine-args", _engine()]
    return [
        *("--num-prefill-workers", str(workers["prefill"])),
        *("--num-decode-workers", str(workers["decode"])),
        *("--prefill-engine-args", _engine(worker_type="prefill")),
        *("--decode-engine-args", _engine(worker_type="decode")),
    ]


def _engine(**more: str) -> str:
    return json.dumps({**_ENGINE, **more})


class _AsPlaced(Policy):
    """Puts each request where the peer has put it."""

    def __init__(
        self, records: Sequence[Mapping[str, Any]], trace: Sequence[TraceRequest], speedup: int
    ) -> None:
        placed: dict[tuple[float, int, int], deque[Choice]] = defaultdict(deque)
        for record in records:
            key = record["arrival_time_ms"], record["input_length"], record["output_length"]
            placed[key].append(Choice(record["decode_worker_idx"], record["prefill_worker_idx"]))
        # Requests of one moment and size are alike: it does not matter which of them is which.
        self._choices = [
            placed[r.timestamp_ms / speedup, r.input_length, r.output_length].popleft()
            for r in trace
        ]

    def choose(self, prospects: Prospects) -> Choice:
        return self._choices[int(prospects.request.request_id)]


def _unpacked(trace: Path, folder: Path) -> Path:
    """The peer reads plain text only."""
    if trace.suffix != ".gz":
        return trace
    plain = folder / "trace.jsonl"
    with gzip.open(trace) as packed, plain.open("wb") as unpacked:
        shutil.copyfileobj(packed, unpacked)
    return plain

"""`kvstore bench index --peer dynamo=PYTHON`: the same work by our index and Dynamo's RadixTree."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from cluster.bench import index_dynamo_driver
from cluster.bench.case import BenchOptions, Case
from cluster.bench.driven_peer import DrivenPeer, driven_peer
from cluster.bench.index_dynamo_driver import BLOCKS, CHAINS, COPIES
from cluster.bench.index_workload import Workload

PEER = "dynamo"
AGAINST = "Dynamo's RadixTree through its Python bindings"
WORKERS = (64, 1024)
INSERTS = "dynamo_inserts_per_s_64"
_MATCHES = "dynamo_matches_per_s_{}"
_INSERT_ROUNDS, _MATCH_ROUNDS = 5, 20
_PROMPTS = 500
_MATCH_NOTE = f"prompts of {BLOCKS} blocks, {CHAINS * BLOCKS:,} blocks indexed; per second of CPU"
_INSERT_NOTE = (
    f"{CHAINS:,} prompts of {BLOCKS} blocks at {COPIES} workers each, from the bytes of an event "
    "on (ours protobuf with hashes of 32 bytes, theirs JSON with 8 of them); per second of CPU"
)


def index_dynamo(options: BenchOptions) -> Iterator[Case]:
    """Nothing without that peer. Raises ConfigurationError if it does not start."""
    if PEER not in options.peers or not options.wants(INSERTS, *map(_MATCHES.format, WORKERS)):
        return
    driver = Path(index_dynamo_driver.__file__)
    with driven_peer("Dynamo", options.peers[PEER], driver) as peer:
        for workers in WORKERS:
            workload = Workload(workers)
            peer.command("prepare", workers=workers)
            rounds = _INSERT_ROUNDS if workers == WORKERS[0] else 0
            inserts = [_insert(workload, peer) for _ in range(1 + rounds)]
            if rounds:
                yield _case(
                    INSERTS, workload.blocks, "blocks/s", inserts, _INSERT_NOTE, "ratio >= 1"
                )
            matches = [_match(workload, peer, n) for n in range(1 + _MATCH_ROUNDS)]
            name = _MATCHES.format(workers)
            yield _case(name, _PROMPTS, "1/s", matches, _MATCH_NOTE, "ratio >= 2")


@dataclass(frozen=True, slots=True)
class Round:
    """Both did the same, one after the other, each in one thread. CPU seconds: whoever else is on
    this machine would weigh more in shorter rounds."""

    our_s: float
    their_s: float


def _insert(workload: Workload, peer: DrivenPeer) -> Round:
    workload.begin()
    return Round(_cpu_seconds_of(workload.insert), peer.command("insert"))


def _match(workload: Workload, peer: DrivenPeer, number: int) -> Round:
    """Prompts take turns, so that each was last looked up a whole round of all before."""
    first = number * _PROMPTS
    prompts = [workload.chains[i % CHAINS] for i in range(first, first + _PROMPTS)]

    def match() -> None:
        for prompt in prompts:
            found = workload.match(prompt)
        assert len(found.prefixes) == COPIES

    return Round(_cpu_seconds_of(match), peer.command("match", first=first, prompts=_PROMPTS))


def _cpu_seconds_of(work: Callable[[], object]) -> float:
    started_s = time.process_time()
    work()
    return time.process_time() - started_s


def _case(name: str, amount: int, unit: str, rounds: Sequence[Round], note: str, goal: str) -> Case:
    """The first round warms up."""
    ours = [one.our_s for one in rounds[1:]]
    theirs = [one.their_s for one in rounds[1:]]
    ratios = [one.their_s / one.our_s for one in rounds[1:]]
    value, ceiling = amount / median(ours), amount / median(theirs)
    return Case(name, value, unit, ceiling, AGAINST, note, ratios, goal)

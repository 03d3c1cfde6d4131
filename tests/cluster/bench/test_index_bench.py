"""What `kvstore bench index` measures is what it says."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from cluster.bench import index_dynamo, index_dynamo_driver
from cluster.bench.case import BenchOptions
from cluster.bench.index_decision import DecidingCluster, index_decision
from cluster.bench.index_dynamo_driver import BLOCKS, COPIES, Peer
from cluster.bench.index_recovery import after_faults, relearned
from cluster.bench.index_workload import Workload


def test_the_workload_is_found_where_it_was_put() -> None:
    workload = Workload(workers=8, chains=5)
    workload.insert()
    for chain in workload.chains:
        found = workload.match(chain)
        assert len(found.prefixes) == COPIES
        assert {blocks.device for blocks in found.prefixes.values()} == {BLOCKS}
    workload.begin()
    assert len(workload.index) == 0


class FakeTree:
    """Dynamo's RadixTree, as far as the driver needs it; it drops the first `forgets`."""

    forgets = 0

    def __init__(self) -> None:
        self._workers: dict[int, set[int]] = {}
        self.scores: dict[int, int] = {}

    def apply_event(self, worker: int, event: bytes) -> None:
        for block in json.loads(event)["data"]["stored"]["blocks"]:
            self._workers.setdefault(block["block_hash"], set()).add(worker)

    def find_matches(self, chain: list[int]) -> FakeTree:
        workers = set.intersection(*(self._workers.get(name, set()) for name in chain))
        self.scores = dict.fromkeys(sorted(workers)[self.forgets :], len(chain))
        return self


def test_the_peer_does_the_same_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_dynamo_driver, "CHAINS", 3)
    peer = Peer(FakeTree)
    peer.prepare(workers=8)
    assert peer.insert() > 0
    assert peer.match(first=2, prompts=4) > 0
    monkeypatch.setattr(FakeTree, "forgets", 1)
    with pytest.raises(AssertionError, match="a match failed"):
        peer.match(first=0, prompts=1)
    with pytest.raises(AssertionError, match="an insert failed"):
        peer.insert()


def test_without_the_peer_nothing_is_held_against_it(tmp_path: Path) -> None:
    assert not list(index_dynamo.index_dynamo(BenchOptions(tmp_path)))
    other = BenchOptions(tmp_path, {"dynamo": Path(sys.executable)}, cases=["bytes_per_block"])
    assert not list(index_dynamo.index_dynamo(other))


def test_decisions_are_whole_and_complete_later() -> None:
    cluster = DecidingCluster(conversations=2, tokens=320)
    turns = [cluster.next_turn(number) for number in range(3)]
    assert turns[0][:320] == turns[2][:320] != turns[1][:320]
    assert turns[0] != turns[2]
    assert all(cluster.decide(turn) > 0 for turn in turns)


def test_the_long_prompt_is_told_in_ms_of_cpu(tmp_path: Path) -> None:
    (case,) = index_decision(BenchOptions(tmp_path, cases=["long_prompt_ms"]))
    assert (case.name, case.unit) == ("long_prompt_ms", "ms")
    assert case.value > 0


def test_the_index_is_right_again_after_faults_of_all_kinds() -> None:
    """Real processes, killed; real sockets, whose messages are lost and reordered."""
    assert asyncio.run(after_faults(pause_s=0.4)) > 0


def test_snapshots_are_learned_while_requests_are_placed() -> None:
    case = asyncio.run(relearned(members=2, blocks=40_000))
    assert case.value > 0
    assert "p99 of a decision" in case.note

"""Predictions over all workers at once equal those of one after the other."""

from __future__ import annotations

from dataclasses import replace
from math import exp, inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.conductor.columns import STALL_MEMORY_S
from cluster.conductor.matching import TierBlocks
from cluster.conductor.testing import LAYOUT, StagedWorker, a_request, stage
from cluster.conductor.types import Role

SIZE = LAYOUT.block_size_tokens
TOKEN_BYTES = LAYOUT.token_bytes
BLOCKS_MAX = 12


class Reference:
    """The cost model in plain numbers, for one worker."""

    def __init__(self, worker: StagedWorker, prompt: int, on_nodes: int, answer: float) -> None:
        self.worker = worker
        self.prompt = prompt
        self.held = prompt + answer / 2
        device, host, disk = worker.prefix
        self.own = device + host + disk
        self.remote = max(0, on_nodes - self.own) if worker.node else 0
        self.plans = [
            self.plan(device, 0, 0, 0),
            self.plan(device, host, 0, 0),
            self.plan(device, host, disk, 0),
            self.plan(device, host, disk, self.remote),
        ]

    def plan(self, device: int, host: int, disk: int, remote: int) -> tuple[float, int]:
        """(seconds to the first token, tokens used) with so many blocks of each."""
        way_s, host_s, disk_s, ask_s, pull_s = self.worker.load
        seconds = way_s + (host * host_s + disk * disk_s) * SIZE * TOKEN_BYTES
        if remote:
            seconds += ask_s + remote * SIZE * TOKEN_BYTES * pull_s + self.worker.link_s
        cached = (device + host + disk + remote) * SIZE
        return seconds + self.compute_s(cached), cached

    def compute_s(self, cached: int) -> float:
        computed = max(1, self.prompt - cached)
        step_s, token_s, pair_s = self.worker.prefill
        return step_s + token_s * computed + pair_s * computed * (self.prompt - computed / 2)

    @property
    def ready_s(self) -> float:
        return min(seconds for seconds, _ in self.plans)

    def itl_s(self, joining: int, stall_s: float = 0.0) -> float:
        worker = self.worker
        step_s, sequence_s, token_s = worker.step
        sequences = max(worker.running, worker.sequences) + joining
        tokens = worker.tokens + joining * self.held
        busy = min((worker.stall_s + stall_s) / STALL_MEMORY_S, 0.9)
        return (step_s + sequence_s * sequences + token_s * tokens) / (1 - busy)

    @property
    def fits(self) -> bool:
        worker = self.worker
        needed = -(-(self.prompt + 64) // SIZE)
        return needed <= min(worker.free_blocks, worker.total_blocks - worker.promised_blocks)


seconds = st.floats(0, 5)
counts = st.integers(0, 40)
prefixes = st.builds(TierBlocks, *[st.integers(0, BLOCKS_MAX // 3)] * 3)
workers = st.builds(
    StagedWorker,
    name=st.just(""),
    node=st.sampled_from(["", "a", "b"]),
    queue_s=seconds,
    stall_s=st.floats(0, 20),
    running=counts,
    free_blocks=st.sampled_from([0, 10, 200, inf]),
    total_blocks=st.sampled_from([150, 300, inf]),
    sequences=counts,
    promised_blocks=st.integers(0, 300),
    tokens=st.floats(0, 1e5),
    prefix=prefixes,
    prefill=st.tuples(st.floats(0, 0.1), st.floats(0, 1e-3), st.floats(0, 1e-6)),
    load=st.tuples(*[st.floats(0, 0.1), *[st.floats(0, 1e-7)] * 2, st.floats(0, 0.1), seconds]),
    step=st.tuples(st.floats(1e-4, 0.1), st.floats(0, 0.01), st.floats(0, 1e-6)),
)


@settings(max_examples=150)
@given(
    st.lists(workers, min_size=1, max_size=4),
    st.integers(BLOCKS_MAX * SIZE, 4000),
    st.integers(0, BLOCKS_MAX),
)
def test_equal_the_scalar_reference(staged: list[StagedWorker], prompt: int, on_nodes: int) -> None:
    named = {f"w{i}": replace(worker, name=f"w{i}") for i, worker in enumerate(staged)}
    prospects = stage(list(named.values()), a_request(prompt), on_nodes=on_nodes)
    alone, decode = prospects.alone, prospects.decode
    for row, member in enumerate(alone.members):
        worker = named[member.member_id]
        reference = Reference(worker, prompt, on_nodes, 64.0)
        assert alone.queue_s[row] == pytest.approx(worker.queue_s)
        assert alone.ready_s[row] == pytest.approx(reference.ready_s)
        assert alone.local_ready_s[row] == pytest.approx(min(s for s, _ in reference.plans[:3]))
        assert alone.ttft_s[row] == pytest.approx(worker.queue_s + reference.ready_s)
        assert decode.itl_before_s[row] == pytest.approx(reference.itl_s(0))
        assert decode.itl_s[row] == pytest.approx(reference.itl_s(1))
        assert decode.itl_alone_s[row] == pytest.approx(reference.itl_s(1, reference.ready_s))
        assert decode.fits[row] == reference.fits
        terms = alone.candidate(row)
        assert terms.ready_s == pytest.approx(reference.ready_s)
        assert terms.tokens.usable == reference.own * SIZE
        assert terms.tokens.remote == reference.remote * SIZE
        best = [s for s, cached in reference.plans if cached == terms.cached_tokens]
        assert min(best) == pytest.approx(reference.ready_s)


def test_a_part_equals_the_whole() -> None:
    """Prefill and decode workers are predicted in one go."""
    describe = {"node": "a", "queue_s": 0.3, "prefix": TierBlocks(1, 2, 3), "stall_s": 1.0}
    prefill = StagedWorker("p", Role.PREFILL, **describe)  # type: ignore[arg-type]
    decode = StagedWorker("d", Role.DECODE, **describe)  # type: ignore[arg-type]
    prospects = stage([decode, prefill], on_nodes=20)
    assert prospects.prefill is not None
    assert [m.member_id for m in prospects.prefill.members] == ["p"]
    assert prospects.prefill.candidate(0).ttft_s == prospects.alone.candidate(0).ttft_s
    assert prospects.prefill.stall_s == prospects.alone.stall_s


def test_stalls_fade() -> None:
    prospects = stage([StagedWorker("d", stall_s=4.0)])
    values = prospects.alone.columns
    values[1] -= 5.0  # given five seconds ago
    assert prospects.alone.stall_s[0] == pytest.approx(4.0 * exp(-5 / STALL_MEMORY_S))


def test_what_is_slower_than_computing_is_not_loaded_or_pulled() -> None:
    slow = (0.002, 1.0, 1.0, 5.0, 1.0)
    worker = StagedWorker("d", node="a", prefix=TierBlocks(1, 2, 3), load=slow)
    terms = stage([worker], on_nodes=50).alone.candidate(0)
    assert (terms.cached_tokens, terms.pull_s, terms.load_s) == (SIZE, 0.0, 0.002)
    assert terms.tokens.usable == 6 * SIZE


def test_a_busy_link_makes_pulling_longer() -> None:
    free, busy = StagedWorker("d0", node="a"), StagedWorker("d1", node="b", link_s=0.05)
    alone = stage([free, busy], on_nodes=100).alone
    first, second = alone.candidate(0), alone.candidate(1)
    assert second.pull_s == pytest.approx(first.pull_s + 0.05)


def test_nothing_is_pulled_without_a_node() -> None:
    alone = stage([StagedWorker("d")], on_nodes=100).alone
    assert alone.candidate(0).tokens.remote == 0
    assert alone.candidate(0).cached_tokens == 0


def test_a_wholly_cached_prompt_computes_its_last_token() -> None:
    worker = StagedWorker("d", prefix=TierBlocks(100, 0, 0), prefill=(0.0, 1.0, 0.0))
    assert stage([worker]).alone.candidate(0).prefill_s == pytest.approx(1.0)


JOINS = {
    ("a", "z1"): "near",
    ("b", "z1"): "zone",
    ("c", "z2"): "far",
    ("", "z1"): "cold",
}


@pytest.mark.parametrize(("where", "expected"), JOINS.items())
def test_hand_over_costs_by_distance(where: tuple[str, str], expected: str) -> None:
    prefill = StagedWorker("p", Role.PREFILL, node=where[0], zone=where[1])
    decode = StagedWorker("d", node="a", zone="z1", prefill=(0.0, 1.0, 0.0))
    prospects = stage([prefill, decode], across_zones=10.0)
    terms = prospects.decode.candidate(0)
    times = [terms.join_near_s, terms.join_zone_s, terms.join_far_s, terms.join_cold_s]
    assert times == sorted(times)
    assert len(set(times)) == 4
    assert prospects.join_s(0, 0) == getattr(terms, f"join_{expected}_s")
    crosses = expected in ("zone", "far")
    assert len(prospects.transfers(0, 0)) == crosses


def test_a_pull_uses_the_link_of_its_node() -> None:
    prospects = stage([StagedWorker("d", node="a")], on_nodes=100)
    (use,) = prospects.transfers(None, 0)
    assert use.slot == 1  # the node's
    assert use.seconds == pytest.approx(100 * SIZE * TOKEN_BYTES * 1e-9)

"""Bad input, members that come and go, clocks that jump; and the same history decides alike."""

from __future__ import annotations

import random
from dataclasses import replace
from math import inf, nan

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cluster.conductor.columns import Field
from cluster.conductor.conductor import Conductor, make_policy
from cluster.conductor.policies.registry import POLICY_NAMES
from cluster.conductor.testing import LAYOUT, MODEL, a_request
from cluster.conductor.types import (
    Load,
    Member,
    Outcome,
    Request,
    Role,
    Targets,
    TierTokens,
)
from cluster.conductor.waiting import QueueLimits
from kvstore.core.errors import (
    InvalidArgumentError,
    KVStoreError,
    OverloadedError,
    UnavailableError,
)
from kvstore.core.ids import BlockHash, BlockKeys, MemberId, NodeId, RequestId
from kvstore.testing.clock import ManualClock
from kvstore.tiers.base import TierKind


class JumpingClock(ManualClock):
    def jump(self, seconds: float) -> None:
        self.now_s += seconds


def member(name: str, role: Role = Role.DECODE, node: str = "a") -> Member:
    node_id = NodeId(name if role is Role.NODE else node)
    model = None if role is Role.NODE else MODEL
    return Member(MemberId(name), role, f"{name}:1", node_id, model=model)


def small_cluster(policy: str = "joint") -> tuple[Conductor, JumpingClock]:
    clock = JumpingClock(100.0)
    conductor = Conductor(make_policy(policy), clock, member_ttl_s=5.0)
    for name, role in (("a", Role.NODE), ("p", Role.PREFILL), ("d0", Role.DECODE)):
        conductor.register(member(name, role), 1)
    conductor.register(member("d1", node=""), 1)
    return conductor, clock


BAD = [
    ({"prompt_tokens": 0}, "prompt_tokens"),
    ({"prompt_tokens": -5}, "prompt_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"routing_keys": list(range(101))}, "routing_keys"),
    ({"targets": Targets(ttft_s=0.0)}, "targets.ttft_s"),
    ({"targets": Targets(ttft_s=-1.0)}, "targets.ttft_s"),
    ({"targets": Targets(itl_s=nan)}, "targets.itl_s"),
    ({"targets": Targets(itl_s=-inf)}, "targets.itl_s"),
    ({"priority": 101}, "priority"),
    ({"priority": -(10**9)}, "priority"),
    ({"tenant": "x" * 257}, "tenant"),
    ({"session": "x" * 257}, "session"),
]


@pytest.mark.parametrize(("fields", "named"), BAD)
def test_malformed_requests_are_named_and_leave_nothing(
    fields: dict[str, object], named: str
) -> None:
    conductor, _ = small_cluster()
    before = conductor.statistics()
    with pytest.raises(InvalidArgumentError, match=named):
        conductor.route(replace(a_request(), **fields))  # type: ignore[arg-type]
    assert conductor.statistics() == before


@pytest.mark.parametrize("policy", POLICY_NAMES)
@pytest.mark.parametrize("tokens", [1, 15, 10**9])
def test_any_length_is_placed(policy: str, tokens: int) -> None:
    conductor, _ = small_cluster(policy)
    request = replace(a_request(), prompt_tokens=tokens, routing_keys=(), max_tokens=0)
    placement = conductor.route(request)
    assert 0 <= placement.chosen.ttft_s < inf
    assert conductor.complete(Outcome(request.request_id))


def test_unmeetable_targets_are_refused_and_endless_ones_taken() -> None:
    conductor, _ = small_cluster()
    with pytest.raises(OverloadedError):
        conductor.route(replace(a_request(), targets=Targets(1e-300, 1e-300)))
    conductor.route(replace(a_request(), targets=Targets(1e300, 1e300)))


def test_a_clock_that_jumps_back_stands_still() -> None:
    conductor, clock = small_cluster()
    conductor.route(a_request(name="r1"))
    clock.jump(-1e6)
    placed = conductor.route(a_request(name="r2"))
    assert 0 <= placed.chosen.queue_s < 10
    assert conductor.expire() == []
    assert conductor.complete(Outcome(RequestId("r1"), ttft_s=1.0, itl_mean_s=0.02))
    assert all(status.silent_s >= 0 for status in conductor.members())


def test_a_clock_that_jumps_ahead_costs_a_registration() -> None:
    conductor, clock = small_cluster()
    conductor.route(a_request(name="r1"))
    clock.jump(1e9)
    assert len(conductor.expire()) == 4
    with pytest.raises(KVStoreError):
        conductor.route(a_request(name="r2"))
    conductor.register(member("d0"), 1)
    assert conductor.route(a_request(name="r2")).decode.member_id == "d0"
    assert not conductor.complete(Outcome(RequestId("r1"), ttft_s=1.0, itl_mean_s=0.1))  # too old


def columns_are_clean(conductor: Conductor) -> bool:
    """Nothing is counted in."""
    values = conductor._members.columns.values
    counted = values[[Field.SEQUENCES, Field.PROMISED_BLOCKS, Field.TARGETED]]
    held = values[[Field.TOKENS, Field.TIGHTNESS]]
    return not counted.any() and bool(np.allclose(held, 0, atol=1e-6))


def test_workers_vanish_and_restart_under_requests() -> None:
    conductor, _ = small_cluster()
    for i in range(6):
        conductor.route(replace(a_request(name=f"r{i}"), targets=Targets(60.0, 60.0)))
    conductor.forget(MemberId("d0"))
    conductor.register(member("d0"), 2)  # again, with nothing on it
    conductor.register(member("p", Role.PREFILL), 2)
    for i in range(6):
        outcome = Outcome(
            RequestId(f"r{i}"), 0.5, 0.3, 1600, 0.02, 50, queue_s=0.1, hits=TierTokens(host=16)
        )
        assert conductor.complete(outcome)
        assert not conductor.complete(outcome)
    assert columns_are_clean(conductor)
    assert conductor.statistics().completed == 6


def test_the_slot_of_a_vanished_worker_goes_to_another() -> None:
    conductor, _ = small_cluster("round-robin")
    for i in range(4):
        conductor.route(a_request(name=f"r{i}"))
    conductor.forget(MemberId("d0"))
    conductor.register(member("d9"), 1)
    learned = conductor._members.columns.values[Field.STEP_S :].copy()
    for i in range(4):
        conductor.complete(Outcome(RequestId(f"r{i}"), itl_mean_s=500.0, output_tokens=5))
    slot = next(r.slot for r in conductor._members if r.member.member_id == "d9")
    assert columns_are_clean(conductor)
    assert (
        conductor._members.columns.values[Field.STEP_S :, slot] < 100 * learned[:, slot] + 1e-3
    ).any()


def test_absurd_outcomes_do_no_harm() -> None:
    conductor, clock = small_cluster()
    for i, seconds in enumerate([1e-12, 1e6, 1e-12, 1e6, 0.5]):
        request = a_request(name=f"r{i}")
        conductor.route(request)
        clock.advance(1.0)
        tokens = 10**7
        assert conductor.complete(
            Outcome(request.request_id, seconds, seconds, tokens, seconds, tokens, queue_s=seconds)
        )
    placed = conductor.route(a_request(name="after"))
    assert 0 <= placed.chosen.ttft_s < inf


NAMES = ("a", "b", "p0", "p1", "d0", "d1", "d2")
ROLES = {"a": Role.NODE, "b": Role.NODE, "p": Role.PREFILL, "d": Role.DECODE}
HASHES = [BlockHash(bytes([i]) * 32) for i in range(1, 33)]


class AnyHistory(RuleBasedStateMachine):
    """Whatever happens, in whatever order: typed errors only, and what was counted in is counted
    out."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = JumpingClock(10.0)
        self.conductor = Conductor(
            make_policy("joint"),
            self.clock,
            member_ttl_s=20.0,
            queue=QueueLimits(requests_max=4, wait_s=3.0, ahead_s=0.2),
        )
        self.epochs = dict.fromkeys(NAMES, 0)
        self.asked = 0

    @rule(name=st.sampled_from(NAMES), node=st.sampled_from(["a", "b", ""]))
    def join(self, name: str, node: str) -> None:
        self.epochs[name] += 1
        role = ROLES[name[0]]
        feed = self.conductor.register(member(name, role, node), self.epochs[name])
        assert feed is not None
        tier = TierKind.HOST if role is Role.NODE else TierKind.DEVICE
        feed.stored(tier, BlockKeys(LAYOUT.fingerprint, HASHES[: 4 * self.epochs[name] % 30]))

    @rule(
        name=st.sampled_from(NAMES),
        waiting=st.integers(0, 5),
        tokens=st.integers(0, 10**5),
        free=st.integers(0, 300),
    )
    def beat(self, name: str, waiting: int, tokens: int, free: int) -> None:
        load = Load(2, waiting, tokens, free, 300)
        try:
            self.conductor.heartbeat(MemberId(name), self.epochs[name], load)
        except KVStoreError:
            assert name not in {s.member.member_id for s in self.conductor.members()}

    @rule(
        tokens=st.integers(1, 512),
        wanted=st.sampled_from([Targets(), Targets(1.0, 0.03), Targets(1e-6, 1e-6)]),
        priority=st.integers(-1, 1),
        again=st.booleans(),
        wait=st.booleans(),
    )
    def ask(self, tokens: int, wanted: Targets, priority: int, again: bool, wait: bool) -> None:
        self.asked += not again
        request = Request(
            RequestId(f"r{self.asked}"),
            MODEL.name,
            [int.from_bytes(h[:8], "little") for h in HASHES[: tokens // 16]],  # type: ignore[misc]
            tokens,
            max_tokens=20,
            targets=wanted,
            priority=priority,
            tenant=f"t{tokens % 3}",
        )
        models = any(s.member.model for s in self.conductor.members())
        try:
            (self.conductor.submit if wait else self.conductor.route)(request)
        except InvalidArgumentError:
            assert not models
        except (OverloadedError, UnavailableError):
            pass

    @rule(number=st.integers(0, 20), failed=st.booleans(), seconds=st.floats(0, 10))
    def end(self, number: int, failed: bool, seconds: float) -> None:
        known = self.conductor.statistics().in_flight
        outcome = Outcome(
            RequestId(f"r{number}"), seconds, seconds / 2, 100, seconds / 50, 20, failed
        )
        ended = self.conductor.complete(outcome)
        assert self.conductor.statistics().in_flight == known - ended

    @rule(number=st.integers(0, 20))
    def cancel_or_join(self, number: int) -> None:
        if number % 2:
            self.conductor.cancel(RequestId(f"r{number}"))
        else:
            self.conductor.joined(RequestId(f"r{number}"))

    @rule(name=st.sampled_from(NAMES), how=st.sampled_from(["forget", "drain"]))
    def leave(self, name: str, how: str) -> None:
        getattr(self.conductor, how)(MemberId(name))

    @rule(seconds=st.floats(-100, 30))
    def pass_time(self, seconds: float) -> None:
        self.clock.jump(seconds)
        self.conductor.expire()
        self.conductor.dispatch()

    @invariant()
    def counts_are_those_of_the_requests(self) -> None:
        values = self.conductor._members.columns.values
        placements = self.conductor._placements
        placed = [p for p in placements.in_flight if placements.ledger.is_there(p.decoder)]
        expected = np.zeros(values.shape[1])
        for one in placed:
            expected[one.decoder.slot] += 1
        assert (values[Field.SEQUENCES] == expected).all()
        assert (values[: Field.PREFILL_S] >= -1e-6).all()
        assert self.conductor.statistics().waiting <= 4

    @invariant()
    def expected_blocks_are_those_of_the_requests(self) -> None:
        if not len(self.conductor._placements.in_flight):
            told = {s.member.member_id: s.indexed_blocks for s in self.conductor.members()}
            assert self.conductor.statistics().indexed_blocks <= sum(told.values())

    def teardown(self) -> None:
        for placed in list(self.conductor._placements.in_flight):
            self.conductor.complete(Outcome(placed.request.request_id))
        assert columns_are_clean(self.conductor)


AnyHistory.TestCase.settings = settings(max_examples=40, stateful_step_count=40)
TestAnyHistory = AnyHistory.TestCase


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_the_same_history_gives_the_same_decisions(policy: str) -> None:
    """So that a log of what happened replays bit for bit."""

    def play() -> list[tuple[str, str | None, float, float]]:
        rng = random.Random(3)
        clock = ManualClock(5.0)
        conductor = Conductor(make_policy(policy, seed=9), clock, member_ttl_s=inf)
        for name in ("a", "b"):
            conductor.register(member(name, Role.NODE), 1)
            for i in range(3):
                conductor.register(member(f"p{name}{i}", Role.PREFILL, name), 1)
                conductor.register(member(f"d{name}{i}", Role.DECODE, name), 1)
        decisions = []
        for i in range(150):
            clock.advance(rng.expovariate(20))
            start = rng.randrange(5) * 1000
            request = a_request(rng.randrange(100, 3000), f"r{i}")
            keys = [start + key for key in request.routing_keys]
            asked = replace(request, routing_keys=keys, session=f"s{start}")  # type: ignore[arg-type]
            placed = conductor.route(asked)
            prefiller = placed.prefill.member_id if placed.prefill else None
            decisions.append(
                (placed.decode.member_id, prefiller, placed.chosen.ttft_s, placed.itl_s)
            )
            if i >= 20:
                done = RequestId(f"r{i - 20}")
                seconds = rng.uniform(0.1, 2)
                conductor.complete(Outcome(done, seconds, seconds / 2, 900, seconds / 40, 99))
        return decisions

    assert play() == play()

"""What is taken, what waits, what is refused; and what is said to those refused."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest

from cluster.conductor.admission import AdmissionMode
from cluster.conductor.conductor import Conductor, make_policy
from cluster.conductor.testing import MODEL, a_request
from cluster.conductor.types import (
    Load,
    Member,
    Outcome,
    Placement,
    Request,
    Role,
    Targets,
)
from cluster.conductor.waiting import QueueLimits, Waiting
from kvstore.core.errors import OverloadedError
from kvstore.core.ids import MemberId, NodeId, RequestId
from kvstore.testing.clock import ManualClock


class Small:
    """One worker for each role; prompts of 1,600 tokens take about 0.18 s by the prior."""

    def __init__(
        self,
        admission: AdmissionMode = "predictive",
        *,
        split: bool = False,
        queue: QueueLimits | None = None,
        targets: Targets | None = None,
    ) -> None:
        self.clock = ManualClock(50.0)
        self.conductor = Conductor(
            make_policy("least-loaded"),
            self.clock,
            admission=admission,
            member_ttl_s=inf,
            queue=queue or QueueLimits(),
            targets=targets or Targets(),
        )
        roles = {"d": Role.DECODE, **({"p": Role.PREFILL} if split else {})}
        for name, role in roles.items():
            member = Member(MemberId(name), role, f"{name}:1", NodeId(""), model=MODEL)
            self.conductor.register(member, 1)

    def ask(self, name: str, ttft_s: float = inf, itl_s: float = inf, **known: object) -> Request:
        request = replace(a_request(name=name), routing_keys=(), targets=Targets(ttft_s, itl_s))
        return replace(request, **known)  # type: ignore[arg-type]

    def fill(self, count: int, name: str = "f") -> None:
        for i in range(count):
            self.conductor.route(self.ask(f"{name}{i}"))

    def outcomes(self) -> dict[str, object]:
        return {answer.request_id: answer.outcome for answer in self.conductor.dispatch()}


def test_without_targets_everything_is_taken() -> None:
    small = Small()
    small.fill(200)
    assert small.conductor.statistics().refused == 0


def test_late_first_token_is_refused_before_any_work() -> None:
    small = Small()
    small.fill(10)
    before = small.conductor.statistics()
    with pytest.raises(OverloadedError, match=r"first token of .* target 0\.5 s") as refused:
        small.conductor.route(small.ask("r", ttft_s=0.5))
    assert small.conductor.statistics() == replace(before, refused=1)
    small.clock.advance(refused.value.retry_after_s + 0.01)
    assert isinstance(small.conductor.route(small.ask("r", ttft_s=0.5)), Placement)


def test_targets_of_the_configuration_are_for_those_that_name_none() -> None:
    small = Small(targets=Targets(ttft_s=0.5))
    for i in range(10):
        small.conductor.route(small.ask(f"f{i}", ttft_s=60.0))
    with pytest.raises(OverloadedError):
        small.conductor.route(small.ask("r"))


@pytest.mark.parametrize("mode", ["none", "late", "early", "predictive"])
def test_mode_none_takes_what_others_refuse(mode: AdmissionMode) -> None:
    small = Small(mode)
    small.fill(10)
    if mode == "none":
        small.conductor.route(small.ask("r", 1e-9, 1e-9))
    else:
        with pytest.raises(OverloadedError):
            small.conductor.route(small.ask("r", 1e-9, 1e-9))


PACE_S = 0.03
"""The prior gives 20 ms and 1 ms more for each sequence: the eleventh is too much."""


def refused_by_pace(small: Small, name: str = "r") -> bool:
    try:
        small.conductor.route(small.ask(name, itl_s=PACE_S))
    except OverloadedError:
        return True
    small.conductor.cancel(RequestId(name))
    return False


def test_early_sees_only_those_that_decode_already() -> None:
    """While prompts are computed, too many are taken: the swing of the paper's Fig. 14."""
    small = Small("early", split=True)
    small.fill(40)
    assert not refused_by_pace(small)
    small.clock.advance(7.5)  # their prompts are computed
    assert refused_by_pace(small)


def test_predictive_sees_those_that_will_decode() -> None:
    small = Small("predictive", split=True)
    small.fill(40)
    assert refused_by_pace(small)


def test_predictive_sees_those_that_will_have_ended() -> None:
    """A long prompt joins when those that decode now are gone."""
    early, predictive = Small("early", split=True), Small("predictive", split=True)
    for small in (early, predictive):
        small.fill(30)
        for i in range(30):
            small.conductor.joined(RequestId(f"f{i}"))
    long = replace(early.ask("long", itl_s=PACE_S), prompt_tokens=60_000)
    assert isinstance(predictive.conductor.route(long), Placement)
    with pytest.raises(OverloadedError):
        early.conductor.route(long)


def test_late_refuses_when_the_prompt_is_computed() -> None:
    small = Small("late", split=True)
    small.fill(40)
    small.conductor.route(small.ask("r", itl_s=PACE_S))
    with pytest.raises(OverloadedError, match="time between tokens"):
        small.conductor.joined(RequestId("r"))
    assert small.conductor.statistics().in_flight == 40
    assert small.conductor.statistics().refused == 1
    small.conductor.joined(RequestId("r"))  # not known any more
    small.conductor.joined(RequestId("f0"))  # has no target


def test_joining_elsewhen_moves_the_forecast() -> None:
    small = Small("early", split=True)
    small.fill(40)
    for i in range(40):
        small.conductor.joined(RequestId(f"f{i}"))  # sooner than was predicted
    assert refused_by_pace(small)


def test_busy_workers_make_requests_wait() -> None:
    small = Small(queue=QueueLimits(ahead_s=0.5))
    placed = [small.conductor.submit(small.ask(f"r{i}")) for i in range(8)]
    kinds = [type(answer) for answer in placed]
    assert kinds == sorted(kinds, key=lambda kind: kind is Waiting)
    assert 1 < kinds.count(Waiting) < 7
    assert small.conductor.statistics().waiting == kinds.count(Waiting)
    assert small.outcomes() == {}
    small.clock.advance(1.0)
    answers = small.outcomes()
    assert all(isinstance(outcome, Placement) for outcome in answers.values())
    assert list(answers) == [f"r{i}" for i in range(8) if kinds[i] is Waiting][: len(answers)]


def test_no_overtaking_but_by_priority() -> None:
    small = Small(queue=QueueLimits(ahead_s=0.1, wait_s=60.0))
    small.fill(3)
    assert isinstance(small.conductor.submit(small.ask("first")), Waiting)
    small.clock.advance(0.5)  # there is room now
    assert isinstance(small.conductor.submit(small.ask("second")), Waiting)
    assert isinstance(small.conductor.submit(small.ask("urgent", priority=5)), Placement)
    small.clock.advance(10.0)
    assert next(iter(small.outcomes())) == "first"


def test_waiting_ends_with_the_deadline() -> None:
    small = Small(queue=QueueLimits(ahead_s=0.1, wait_s=3.0))
    small.fill(100)
    small.conductor.submit(small.ask("r"))
    small.conductor.submit(small.ask("hasty", ttft_s=25.0, priority=-1))
    small.clock.advance(3.0)
    answers = small.outcomes()
    assert set(answers) == {"r", "hasty"}
    for outcome in answers.values():
        assert isinstance(outcome, OverloadedError)
        assert outcome.retry_after_s > 0
    assert small.conductor.statistics().waiting == 0


def test_what_has_waited_counts_against_the_target() -> None:
    small = Small(queue=QueueLimits(ahead_s=0.2, wait_s=60.0))
    small.fill(3)
    assert isinstance(small.conductor.submit(small.ask("r", ttft_s=0.9)), Waiting)
    small.clock.advance(0.85)  # idle again, but too late for it
    (outcome,) = small.outcomes().values()
    assert isinstance(outcome, OverloadedError)


def test_hopeless_requests_do_not_wait() -> None:
    small = Small()
    small.fill(100)
    with pytest.raises(OverloadedError):
        small.conductor.submit(small.ask("r", ttft_s=0.5))


def test_a_pace_that_will_pass_is_waited_for() -> None:
    small = Small(queue=QueueLimits(ahead_s=60.0, wait_s=60.0))
    small.fill(30)
    assert isinstance(small.conductor.submit(small.ask("r", itl_s=PACE_S)), Waiting)
    assert small.outcomes() == {}
    for i in range(30):
        small.conductor.complete(Outcome(RequestId(f"f{i}"), output_tokens=10))
    small.clock.advance(20.0)  # few prompts were computed lately
    assert isinstance(small.outcomes()["r"], Placement)


def test_a_full_queue_pushes_out_the_last() -> None:
    small = Small(queue=QueueLimits(requests_max=1, ahead_s=0.1, wait_s=60.0))
    small.fill(20)
    assert isinstance(small.conductor.submit(small.ask("low")), Waiting)
    with pytest.raises(OverloadedError, match="the queue is full"):
        small.conductor.submit(small.ask("other"))
    assert isinstance(small.conductor.submit(small.ask("high", priority=1)), Waiting)
    answers = small.outcomes()
    assert isinstance(answers["low"], OverloadedError)
    assert small.conductor.statistics().waiting == 1


def test_without_a_queue_submit_is_route() -> None:
    small = Small(queue=QueueLimits(requests_max=0, ahead_s=0.0))
    for i in range(20):
        assert isinstance(small.conductor.submit(small.ask(f"r{i}")), Placement)


def test_cancelled_while_waiting_and_in_flight() -> None:
    small = Small(queue=QueueLimits(ahead_s=0.1, wait_s=60.0))
    small.fill(3)
    small.conductor.submit(small.ask("r"))
    assert small.conductor.cancel(RequestId("r"))
    assert not small.conductor.cancel(RequestId("r"))
    assert small.conductor.cancel(RequestId("f0"))
    statistics = small.conductor.statistics()
    assert (statistics.waiting, statistics.in_flight) == (0, 2)
    small.clock.advance(10)
    assert small.outcomes() == {}


def test_asked_again_it_waits_once() -> None:
    small = Small(queue=QueueLimits(ahead_s=0.1, wait_s=60.0))
    small.fill(3)
    for _ in range(3):
        assert isinstance(small.conductor.submit(small.ask("r")), Waiting)
    assert small.conductor.statistics().waiting == 1


def test_the_last_worker_leaves_while_requests_wait() -> None:
    small = Small(queue=QueueLimits(ahead_s=0.1, wait_s=60.0))
    small.fill(3)
    small.conductor.submit(small.ask("r"))
    small.conductor.forget(MemberId("d"))
    (outcome,) = small.outcomes().values()
    assert isinstance(outcome, Exception)
    assert "no decode worker" in str(outcome) or "not served" in str(outcome)


def test_tenants_share_a_busy_worker() -> None:
    """One tenant floods; the other's requests come now and then, and hardly wait."""
    small = Small(queue=QueueLimits(requests_max=500, ahead_s=0.3, wait_s=1e6))
    for i in range(100):
        small.conductor.submit(small.ask(f"flood{i}", tenant="flood"))
    for i in range(5):
        small.conductor.submit(small.ask(f"calm{i}", tenant="calm"))
    served: list[str] = []
    for _ in range(8):
        small.clock.advance(0.4)
        small.conductor.heartbeat(MemberId("d"), 1, Load())
        served += [answer.request_id for answer in small.conductor.dispatch()]
    calm = [place for place, name in enumerate(served) if name.startswith("calm")]
    assert len(calm) == 5
    assert max(calm) <= 10

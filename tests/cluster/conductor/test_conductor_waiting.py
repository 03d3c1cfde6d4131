"""Who waits, who goes next, and for how long: priority, fair share, deadline."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.conductor.fairness import FairShare
from cluster.conductor.testing import a_request
from cluster.conductor.waiting import Waiting, WaitingRoom
from kvstore.core.ids import RequestId


def waiting(
    name: str, priority: int = 0, tenant: str = "", deadline_s: float = 1.0, arrived_s: float = 0.0
) -> Waiting:
    request = replace(a_request(name=name), priority=priority, tenant=tenant)
    return Waiting(request, arrived_s, deadline_s, frozenset())


def room(*requests: Waiting, requests_max: int = 100, fair: FairShare | None = None) -> WaitingRoom:
    made = WaitingRoom(requests_max, fair or FairShare())
    for request in requests:
        assert made.add(request) is None
    return made


def drain(made: WaitingRoom) -> list[str]:
    names = []
    while (first := made.first()) is not None:
        names.append(first.request.request_id)
        assert made.remove(first.request.request_id) is first
    return names


def test_priority_is_strict() -> None:
    made = room(waiting("low", -5, deadline_s=0.1), waiting("high", 9), waiting("mid", 0))
    assert drain(made) == ["high", "mid", "low"]


def test_earliest_deadline_first_inside_a_class() -> None:
    made = room(*(waiting(f"r{d}", deadline_s=d) for d in (5.0, 1.0, 3.0)))
    assert drain(made) == ["r1.0", "r3.0", "r5.0"]


def test_the_tenant_charged_least_goes_first_whatever_its_deadline() -> None:
    fair = FairShare()
    made = room(waiting("a", tenant="a", deadline_s=0.1), waiting("b", tenant="b"), fair=fair)
    fair.charge("a", 100.0, 0.0)
    assert drain(made) == ["b", "a"]


def test_tenants_share_evenly_whatever_they_ask_for() -> None:
    """One floods, one sends little: while both wait, they are served as many tokens."""
    fair = FairShare()
    made = room(fair=fair, requests_max=1000)
    for i in range(300):
        made.add(waiting(f"flood{i}", tenant="flood", deadline_s=0.5))
    for i in range(20):
        made.add(waiting(f"small{i}", tenant="small", deadline_s=9.0))
    served = Counter[str]()
    for _ in range(30):
        first = made.first()
        assert first is not None
        made.remove(first.request.request_id)
        size = 1000.0 if first.request.tenant == "flood" else 2000.0
        fair.charge(first.request.tenant, size, 0.0)
        served[first.request.tenant] += int(size)
    assert abs(served["flood"] - served["small"]) <= 2000


def test_idling_saves_up_nothing() -> None:
    fair = FairShare()
    made = room(fair=fair)
    made.add(waiting("busy", tenant="busy"))
    fair.charge("busy", 1e6, 0.0)
    made.add(waiting("back", tenant="back"))
    assert fair.charged("back") == fair.charged("busy") == 1e6
    fair.charge("back", 1.0, 0.0)
    assert drain(made) == ["busy", "back"]


def test_what_was_charged_too_much_is_given_back() -> None:
    fair = FairShare()
    fair.charge("a", 100.0, 50.0)
    fair.charge("a", 0.0, -30.0)
    assert fair.charged("a") == 100 + 2 * 20
    fair.charge("a", 0.0, -1e9)
    assert fair.charged("a") == 0


def test_tenants_are_bounded() -> None:
    fair = FairShare()
    for i in range(5000):
        fair.charge(f"t{i}", 1.0, 0.0)
    assert fair.charged("t0") == 0
    assert fair.charged("t4999") == 1


def test_a_full_room_pushes_out_the_last() -> None:
    made = room(waiting("high", 5), waiting("low", 0, deadline_s=2.0), requests_max=2)
    late = waiting("late", 0, deadline_s=9.0)
    assert made.add(late) is late
    pushed_out = made.add(waiting("higher", 9))
    assert pushed_out is not None
    assert pushed_out.request.request_id == "low"
    assert drain(made) == ["higher", "high"]


def test_overdue_ones_are_taken_out() -> None:
    made = room(waiting("a", deadline_s=1.0), waiting("b", deadline_s=2.0))
    assert [w.request.request_id for w in made.overdue(1.0)] == ["a"]
    assert made.overdue(1.0) == []
    assert drain(made) == ["b"]


def test_removing_one_that_does_not_wait() -> None:
    made = room(waiting("a"))
    assert made.remove(RequestId("b")) is None
    assert made.remove(RequestId("a")) is not None
    assert made.remove(RequestId("a")) is None
    assert made.first() is None


def test_again_with_another_deadline() -> None:
    made = room(waiting("a", deadline_s=1.0), waiting("b", deadline_s=2.0))
    made.remove(RequestId("a"))
    made.add(waiting("a", deadline_s=3.0))
    assert drain(made) == ["b", "a"]


entries = st.tuples(st.integers(-2, 2), st.sampled_from("abc"), st.integers(0, 9))
operations = st.lists(st.one_of(entries, st.just("serve"), st.just("drop")), max_size=60)


@settings(max_examples=150)
@given(operations, st.integers(1, 12))
def test_order_and_bound_hold_in_any_history(script: list[object], requests_max: int) -> None:
    fair = FairShare()
    made = room(requests_max=requests_max, fair=fair)
    inside: dict[str, Waiting] = {}
    for number, step in enumerate(script):
        if isinstance(step, tuple):
            priority, tenant, deadline = step
            new = waiting(f"r{number}", priority, tenant, float(deadline))
            inside[f"r{number}"] = new
            if (out := made.add(new)) is not None:
                del inside[out.request.request_id]
                assert out.request.priority == min(
                    w.request.priority for w in [*inside.values(), out]
                )
        elif inside and step == "drop":
            name = min(inside)
            assert made.remove(RequestId(name)) is inside.pop(name)
        first = made.first()
        assert (first is None) == (not inside)
        if first is None:
            continue
        ranks = {
            w.request.request_id: (
                -w.request.priority,
                fair.charged(w.request.tenant),
                w.request.tenant,
                w.deadline_s,
            )
            for w in inside.values()
        }
        assert ranks[first.request.request_id] == min(ranks.values())
        if step == "serve":
            made.remove(first.request.request_id)
            del inside[first.request.request_id]
            fair.charge(first.request.tenant, 10.0, 1.0)
        assert len(made) == len(inside) <= requests_max


@pytest.mark.parametrize("requests_max", [0, 1])
def test_a_room_of_no_size(requests_max: int) -> None:
    made = WaitingRoom(requests_max, FairShare())
    first, second = waiting("a"), waiting("b", deadline_s=5.0)
    assert made.add(first) is (first if requests_max == 0 else None)
    assert made.add(second) is second

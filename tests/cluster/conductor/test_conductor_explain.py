"""Every decision can be asked about, for a while; and how good predictions were is told."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.conductor.conductor import Conductor, make_policy
from cluster.conductor.testing import MODEL, a_request
from cluster.conductor.types import Member, Outcome, Role, Targets
from kvstore.core.errors import OverloadedError
from kvstore.core.ids import MemberId, NodeId, RequestId
from kvstore.testing.clock import ManualClock


@pytest.fixture
def conductor() -> Conductor:
    made = Conductor(make_policy("joint"), ManualClock(7.0), explained_max=3)
    for name, role in (("p0", Role.PREFILL), ("p1", Role.PREFILL), ("d0", Role.DECODE)):
        made.register(Member(MemberId(name), role, f"{name}:1", NodeId(""), model=MODEL), 1)
    return made


def test_all_terms_of_all_workers(conductor: Conductor) -> None:
    placed = conductor.route(a_request())
    told = conductor.explain(RequestId("r"))
    assert told is not None
    assert (told.decided_s, told.policy, told.refused) == (7.0, "Joint", "")
    assert [c.member.member_id for c in told.prefills] == ["p0", "p1"]
    assert [c.member.member_id for c in told.alone] == ["d0"]
    assert [d.member.member_id for d in told.decodes] == ["d0"]
    assert placed.prefill is not None
    assert (told.prefill, told.decode) == (placed.prefill.member_id, "d0")
    assert placed.chosen in list(told.prefills)
    assert told.decodes[0].itl_s == placed.itl_s
    assert told.decodes[0].join_cold_s == placed.join_s
    assert told.prefills[-1] == told.prefills[1:][0] == list(told.prefills)[1]


def test_terms_are_those_of_the_moment(conductor: Conductor) -> None:
    conductor.route(a_request())
    told = conductor.explain(RequestId("r"))
    assert told is not None
    before = list(told.prefills)
    for i in range(2):
        conductor.route(a_request(name=f"other{i}"))
    again = conductor.explain(RequestId("r"))
    assert again is not None
    assert list(again.prefills) == before


def test_refusals_are_explained(conductor: Conductor) -> None:
    with pytest.raises(OverloadedError):
        conductor.route(replace(a_request(), targets=Targets(ttft_s=1e-6)))
    told = conductor.explain(RequestId("r"))
    assert told is not None
    assert told.refused.startswith("time to first token of ")
    assert told.decode == "d0"


def test_the_oldest_are_forgotten(conductor: Conductor) -> None:
    for i in range(5):
        conductor.route(a_request(name=f"r{i}"))
    assert [i for i in range(5) if conductor.explain(RequestId(f"r{i}"))] == [2, 3, 4]
    assert conductor.explain(RequestId("never")) is None


def test_candidates_of_a_placement_are_the_soonest() -> None:
    made = Conductor(make_policy("round-robin"), ManualClock(7.0))
    for i in range(30):
        member = Member(MemberId(f"d{i:02}"), Role.DECODE, "x:1", NodeId(""), model=MODEL)
        made.register(member, 1)
    for i in range(22):
        made.route(a_request(name=f"r{i}"))
    placed = made.route(a_request())
    names = [candidate.member.member_id for candidate in placed.candidates]
    assert names == [f"d{i:02}" for i in range(22, 30)]


def test_errors_of_each_worker_are_told(conductor: Conductor) -> None:
    placed = conductor.route(a_request())
    observed = Outcome(RequestId("r"), ttft_s=placed.chosen.ttft_s * 2, itl_mean_s=placed.itl_s * 4)
    conductor.complete(observed)
    errors = {s.member.member_id: (s.ttft_error, s.itl_error) for s in conductor.members()}
    chosen = placed.chosen.member.member_id
    assert errors[chosen][0] == pytest.approx(0.5)
    assert errors["d0"][1] == pytest.approx(0.75)
    assert errors[({"p0", "p1"} - {chosen}).pop()] == (0, 0)
    statistics = conductor.statistics()
    assert statistics.ttft_error == pytest.approx(0.5)
    assert statistics.itl_error == pytest.approx(0.75)

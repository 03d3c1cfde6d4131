"""Policies choose from given predictions."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster.conductor.policy import JointPlacement, RoundRobin
from cluster.conductor.types import Candidate, DecodeCandidate, Member, Request, Role, TierTokens
from kvstore.core.ids import MemberId, NodeId, RequestId

REQUEST = Request(RequestId("r"), "m", (), prompt_tokens=100, max_tokens=10)


def prefill(name: str, ttft_s: float, node: str = "a", routed: int = 0) -> Candidate:
    member = Member(MemberId(name), Role.PREFILL, "x:1", NodeId(node))
    return Candidate(member, ttft_s, 0.0, 0.0, TierTokens(), routed)


def decode(
    name: str,
    itl_s: float = 0.01,
    node: str = "a",
    near_s: float = 0.01,
    far_s: float = 1.0,
    batch: int = 1,
    fits: bool = True,
) -> DecodeCandidate:
    member = Member(MemberId(name), Role.DECODE, "x:1", NodeId(node))
    return DecodeCandidate(member, itl_s, near_s, far_s, batch, fits)


def chosen(prefills: list[Candidate], decodes: list[DecodeCandidate]) -> tuple[str, str]:
    choice = JointPlacement().choose(REQUEST, prefills, decodes)
    assert choice.prefill is not None
    return choice.prefill.member.member_id, choice.decode.member.member_id


def test_least_time_to_first_token_wins() -> None:
    assert chosen([prefill("p0", 0.9), prefill("p1", 0.3)], [decode("d0")]) == ("p1", "d0")


def test_decode_worker_with_the_better_pace_wins() -> None:
    assert chosen([prefill("p0", 0.3)], [decode("d0", 0.05), decode("d1", 0.01)]) == ("p0", "d1")


def test_decode_worker_of_the_same_node_wins_over_a_slightly_faster_one() -> None:
    decodes = [decode("d0", 0.009, node="b"), decode("d1", 0.01, node="a")]
    assert chosen([prefill("p0", 0.3)], decodes) == ("p0", "d1")


def test_hand_over_counts_when_the_prefill_worker_is_chosen() -> None:
    prefills = [prefill("p0", 0.3, node="b"), prefill("p1", 0.5, node="a")]
    assert chosen(prefills, [decode("d0", node="a")]) == ("p1", "d0")


def test_workers_without_a_node_are_far_from_each_other() -> None:
    decodes = [decode("d0", node="", near_s=0.0, far_s=2.0), decode("d1", node="b", far_s=1.0)]
    assert chosen([prefill("p0", 0.3, node="")], decodes) == ("p0", "d1")


def test_memory_counts_before_pace() -> None:
    decodes = [decode("d0", 0.01, fits=False), decode("d1", 0.5)]
    assert chosen([prefill("p0", 0.3)], decodes) == ("p0", "d1")
    assert chosen([prefill("p0", 0.3)], decodes[:1]) == ("p0", "d0")


def test_equal_workers_share_by_load() -> None:
    prefills = [prefill("p0", 0.300, routed=50), prefill("p1", 0.301, routed=3)]
    decodes = [decode("d0", batch=4), decode("d1", batch=2)]
    assert chosen(prefills, decodes) == ("p1", "d1")


def test_alone_the_time_to_first_token_counts_too() -> None:
    prefills = [prefill("d0", 0.9), prefill("d1", 0.3)]
    choice = JointPlacement().choose_alone(REQUEST, prefills, [decode("d0"), decode("d1")])
    assert choice.prefill is None
    assert choice.decode.member.member_id == "d1"


seconds = st.floats(0, 10)
nodes = st.sampled_from(["a", "b", ""])


@given(
    st.lists(st.tuples(seconds, nodes), min_size=1, max_size=5),
    st.lists(st.tuples(seconds, seconds, nodes, st.booleans()), min_size=1, max_size=5),
)
def test_pair_is_within_the_tolerance_of_the_best_of_all_pairs(
    prefill_terms: list[tuple[float, str]], decode_terms: list[tuple[float, float, str, bool]]
) -> None:
    prefills = [prefill(f"p{i}", s, node) for i, (s, node) in enumerate(prefill_terms)]
    decodes = [
        decode(f"d{i}", node=node, near_s=min(near, far), far_s=max(near, far), fits=fits)
        for i, (near, far, node, fits) in enumerate(decode_terms)
    ]

    def rating(p: Candidate, d: DecodeCandidate) -> tuple[bool, float]:
        near = p.member.node_id == d.member.node_id != ""
        join_s = d.join_near_s if near else d.join_far_s
        return not d.fits, p.ttft_s + join_s + REQUEST.max_tokens * d.itl_s

    best = min(rating(p, d) for p in prefills for d in decodes)
    choice = JointPlacement().choose(REQUEST, prefills, decodes)
    assert choice.prefill is not None
    cramped, total_s = rating(choice.prefill, choice.decode)
    assert cramped == best[0]
    assert total_s <= best[1] * 1.0501


def test_round_robin_takes_turns() -> None:
    policy = RoundRobin()
    prefills, decodes = [prefill("p0", 9.0), prefill("p1", 0.1)], [decode("d0"), decode("d1")]
    turns = [policy.choose(REQUEST, prefills, decodes) for _ in range(4)]
    assert [t.prefill.member.member_id for t in turns if t.prefill] == ["p0", "p1", "p0", "p1"]
    assert [t.decode.member.member_id for t in turns] == ["d0", "d1", "d0", "d1"]
    alone = policy.choose_alone(REQUEST, prefills, decodes)
    assert alone.prefill is None
    assert alone.decode is decodes[0]

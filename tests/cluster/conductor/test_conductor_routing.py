"""The conductor as a library: members, events and requests in, placements out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.conductor.conductor import Conductor, make_policy
from cluster.conductor.feed import IndexFeed
from cluster.conductor.inflight import InFlightTable
from cluster.conductor.routing_keys import RoutingKeys
from cluster.conductor.types import Load, Member, ModelInfo, Outcome, Placement, Request, Role
from kvstore.core.errors import (
    IdentityMismatchError,
    InvalidArgumentError,
    SessionExpiredError,
    UnavailableError,
)
from kvstore.core.ids import BlockHash, BlockKeys, MemberId, NodeId, RequestId, routing_key
from kvstore.core.layout import KVLayout
from kvstore.testing.clock import ManualClock
from kvstore.tiers.base import TierKind

LAYOUT = KVLayout(num_layers=2, num_kv_heads=2, head_dim=64, block_size_tokens=16, dtype="float32")
MODEL = ModelInfo("tiny", b"r" * 32, LAYOUT, 4096, "/models/tiny")
HASHES = [BlockHash(bytes([i]) * 32) for i in range(1, 33)]
TTL_S = 5.0


def blocks(first: int, last: int) -> BlockKeys:
    return BlockKeys(LAYOUT.fingerprint, HASHES[first:last])


class Cluster:
    """A conductor whose members the test plays."""

    def __init__(self, policy: str = "joint") -> None:
        self.clock = ManualClock(100.0)
        self.conductor = Conductor(
            make_policy(policy),
            self.clock,
            member_ttl_s=TTL_S,
        )
        self.feeds: dict[str, IndexFeed] = {}

    def join(self, name: str, role: Role, node: str = "a", epoch: int = 1) -> IndexFeed:
        model = None if role is Role.NODE else MODEL
        node_id = NodeId(name if role is Role.NODE else node)
        member = Member(MemberId(name), role, f"{name}:1", node_id, model=model)
        feed = self.conductor.register(member, epoch)
        assert feed is not None
        self.feeds[name] = feed
        return feed

    def stored(self, name: str, tier: TierKind, keys: BlockKeys) -> None:
        self.feeds[name].stored(tier, keys)

    def beat(self, name: str, load: Load | None = None, epoch: int = 1) -> None:
        self.conductor.heartbeat(MemberId(name), epoch, load or Load())

    def route(self, name: str = "r", tokens: int = 32 * 16 + 1, **options: object) -> Placement:
        request = Request(
            RequestId(name),
            "tiny",
            RoutingKeys.of_hashes(HASHES)[: tokens // 16],
            tokens,
            max_tokens=8,
        )
        return self.conductor.route(replace(request, **options))  # type: ignore[arg-type]

    def complete(self, name: str, **terms: float) -> bool:
        return self.conductor.complete(Outcome(RequestId(name), **terms))  # type: ignore[arg-type]


@pytest.fixture
def cluster() -> Cluster:
    """Two nodes with a prefill worker each, and one decode worker on each."""
    made = Cluster()
    for node in ("a", "b"):
        made.join(node, Role.NODE)
        made.join(f"p-{node}", Role.PREFILL, node)
        made.join(f"d-{node}", Role.DECODE, node)
    return made


def names(placement: Placement) -> tuple[str | None, str]:
    prefill = placement.prefill
    return prefill.member_id if prefill else None, placement.decode.member_id


def test_goes_where_the_prefix_is(cluster: Cluster) -> None:
    cluster.stored("p-b", TierKind.DEVICE, blocks(0, 20))
    assert names(cluster.route()) == ("p-b", "d-b")


def test_own_nodes_tiers_count_and_other_nodes_do_not(cluster: Cluster) -> None:
    cluster.stored("b", TierKind.HOST, blocks(0, 10))
    cluster.stored("b", TierKind.DISK, blocks(10, 16))
    placement = cluster.route()
    assert names(placement) == ("p-b", "d-b")
    here = {c.member.member_id: c.tokens for c in placement.candidates}
    assert (here["p-b"].host, here["p-b"].disk, here["p-b"].remote) == (160, 96, 0)
    assert (here["p-a"].usable, here["p-a"].remote) == (0, 256)


def test_every_candidate_is_explained(cluster: Cluster) -> None:
    cluster.stored("p-b", TierKind.DEVICE, blocks(0, 20))
    placement = cluster.route()
    assert [c.member.member_id for c in placement.candidates] == ["p-a", "p-b"]
    for candidate in placement.candidates:
        terms = (candidate.queue_s, candidate.load_s, candidate.pull_s, candidate.prefill_s)
        assert candidate.ttft_s == pytest.approx(sum(terms))
        assert candidate.prefill_s > 0
    assert placement.chosen == placement.candidates[1]


def test_a_long_queue_outweighs_a_prefix(cluster: Cluster) -> None:
    cluster.stored("p-b", TierKind.DEVICE, blocks(0, 20))
    cluster.beat("p-b", Load(running=1, waiting=40, waiting_tokens=40 * 500))
    assert names(cluster.route())[0] == "p-a"


def test_a_burst_spreads_although_no_load_was_reported(cluster: Cluster) -> None:
    chosen = [cluster.route(f"r{i}", routing_keys=()).prefill for i in range(8)]
    counts = [sum(1 for p in chosen if p and p.member_id == name) for name in ("p-a", "p-b")]
    assert counts == [4, 4]


def test_siblings_of_a_request_follow_it_before_any_event(cluster: Cluster) -> None:
    first = cluster.route("r1")
    cluster.clock.advance(60)  # its queue is worked off; it is still decoding
    second = cluster.route("r2")
    assert names(second)[0] == names(first)[0] == second.chosen.member.member_id
    assert second.chosen.tokens.device == 32 * 16
    for name in ("r1", "r2"):
        assert cluster.complete(name, failed=True)
    assert cluster.route("r3").chosen.tokens.usable == 0


def test_bypass_goes_to_a_decode_worker_without_credit(cluster: Cluster) -> None:
    cluster.stored("d-b", TierKind.DEVICE, blocks(0, 8))
    placement = cluster.route(bypass_cache=True)
    assert placement.prefill is None
    assert [c.member.member_id for c in placement.candidates] == ["d-a", "d-b"]
    assert all(c.tokens.usable == c.tokens.remote == 0 for c in placement.candidates)
    assert cluster.route("r2").chosen.tokens.usable == 0  # it left no expectation either


def test_without_prefill_workers_decode_workers_do_it_all(cluster: Cluster) -> None:
    for name in ("p-a", "p-b"):
        cluster.conductor.drain(MemberId(name))
    cluster.stored("d-b", TierKind.DEVICE, blocks(0, 10))
    placement = cluster.route()
    assert names(placement) == (None, "d-b")
    assert placement.chosen.tokens.device == 160


def test_routed_again_it_goes_elsewhere(cluster: Cluster) -> None:
    cluster.stored("p-b", TierKind.DEVICE, blocks(0, 20))
    assert names(cluster.route("r")) == ("p-b", "d-b")
    assert names(cluster.route("r")) == ("p-a", "d-a")
    assert cluster.conductor.statistics().failed == 1
    assert cluster.conductor.statistics().in_flight == 1
    assert names(cluster.route("r")) == ("p-b", "d-b")  # all have failed: the best of them


def test_silent_member_is_forgotten(cluster: Cluster) -> None:
    cluster.stored("b", TierKind.HOST, blocks(0, 10))
    cluster.clock.advance(TTL_S - 1)
    for name in ("a", "p-a", "d-a"):
        cluster.beat(name)
    assert cluster.conductor.expire() == []
    cluster.clock.advance(2)
    assert set(cluster.conductor.expire()) == {"b", "p-b", "d-b"}
    assert cluster.conductor.statistics().indexed_blocks == 0
    assert names(cluster.route()) == ("p-a", "d-a")
    with pytest.raises(SessionExpiredError):
        cluster.beat("b")


def test_late_events_of_a_forgotten_member_do_not_reach_its_successor(cluster: Cluster) -> None:
    old = cluster.feeds["p-b"]
    cluster.conductor.forget(MemberId("p-b"))
    cluster.join("p-c", Role.PREFILL, "b")
    old.stored(TierKind.DEVICE, blocks(0, 32))
    old.removed(TierKind.DEVICE, blocks(0, 1))
    old.cleared(TierKind.DEVICE)
    assert not old.valid
    assert cluster.conductor.statistics().indexed_blocks == 0
    cluster.stored("p-c", TierKind.DEVICE, blocks(0, 3))
    old.reset()
    assert cluster.conductor.statistics().indexed_blocks == 3


def test_restarted_member_holds_nothing_until_told(cluster: Cluster) -> None:
    cluster.stored("p-b", TierKind.DEVICE, blocks(0, 32))
    cluster.join("p-b", Role.PREFILL, "b", epoch=2)
    assert cluster.conductor.statistics().indexed_blocks == 0
    with pytest.raises(SessionExpiredError):
        cluster.beat("p-b", epoch=1)
    cluster.beat("p-b", epoch=2)


def test_registering_again_just_so_changes_nothing(cluster: Cluster) -> None:
    cluster.stored("a", TierKind.HOST, blocks(0, 4))
    member = next(s.member for s in cluster.conductor.members() if s.member.member_id == "a")
    assert cluster.conductor.register(member, 1) is None
    assert cluster.conductor.statistics().indexed_blocks == 4
    cluster.conductor.drain(MemberId("a"))
    assert cluster.conductor.register(member, 1) is not None


def test_drained_node_gives_no_credit(cluster: Cluster) -> None:
    cluster.stored("b", TierKind.HOST, blocks(0, 10))
    cluster.conductor.drain(MemberId("b"))
    assert cluster.route().chosen.tokens.usable == 0
    cluster.conductor.drain(MemberId("never seen"))


@pytest.mark.parametrize(
    "other",
    [
        replace(MODEL, identity_root=b"x" * 32),
        replace(MODEL, layout=replace(LAYOUT, block_size_tokens=32)),
    ],
)
def test_workers_of_one_name_must_agree(cluster: Cluster, other: ModelInfo) -> None:
    stranger = Member(MemberId("d-x"), Role.DECODE, "x:1", NodeId("a"), model=other)
    with pytest.raises(IdentityMismatchError, match="'d-x' would not compute"):
        cluster.conductor.register(stranger, 1)
    named = replace(stranger, model=replace(other, name="other"))
    assert cluster.conductor.register(named, 1) is not None


def test_a_lone_worker_may_come_back_with_another_identity() -> None:
    cluster = Cluster()
    cluster.join("d", Role.DECODE)
    other = replace(MODEL, identity_root=b"x" * 32)
    again = Member(MemberId("d"), Role.DECODE, "d:1", NodeId("a"), model=other)
    assert cluster.conductor.register(again, 2) is not None


def test_errors_say_what_is_missing() -> None:
    cluster = Cluster()
    with pytest.raises(UnavailableError, match="no decode worker for model 'tiny'"):
        cluster.route()
    cluster.join("p", Role.PREFILL)
    with pytest.raises(UnavailableError, match="no decode worker for model 'tiny'"):
        cluster.route()
    with pytest.raises(InvalidArgumentError, match="'huge' is not served here; served are: tiny"):
        cluster.route(model="huge")


def test_learns_from_what_was_observed(cluster: Cluster) -> None:
    for i in range(40):
        placement = cluster.route(f"r{i}", 512, routing_keys=())
        slow = placement.chosen.member.member_id == "p-a"
        compute_s = 2.0 if slow else 0.5
        assert cluster.complete(
            f"r{i}",
            ttft_s=compute_s + 0.01,
            prefill_compute_s=compute_s,
            computed_tokens=512,
            itl_mean_s=0.03,
        )
        cluster.clock.advance(30)
    last = cluster.route("last", 512, routing_keys=())
    predicted = {c.member.member_id: c.ttft_s for c in last.candidates}
    assert last.chosen.member.member_id == "p-b"
    assert predicted["p-b"] == pytest.approx(0.51, rel=0.05)
    assert cluster.conductor.statistics().ttft_error < 0.1
    assert cluster.conductor.statistics().completed == 40


def test_unknown_outcome_is_ignored(cluster: Cluster) -> None:
    assert not cluster.complete("never routed", ttft_s=1.0)
    cluster.route("r")
    assert cluster.complete("r", failed=True)
    assert not cluster.complete("r", failed=True)
    assert cluster.conductor.statistics().failed == 1


def test_decode_worker_without_room_is_passed_over(cluster: Cluster) -> None:
    cluster.stored("p-b", TierKind.DEVICE, blocks(0, 32))
    cluster.beat("d-b", Load(running=1, free_blocks=10, total_blocks=100))
    assert cluster.route().decode.member_id == "d-a"


def test_requests_in_flight_fill_a_decode_worker(cluster: Cluster) -> None:
    for name in ("d-a", "d-b"):
        cluster.beat(name, Load(free_blocks=70, total_blocks=70))
    decodes = [cluster.route(f"r{i}").decode.member_id for i in range(4)]  # 33 blocks each
    assert sorted(decodes) == ["d-a", "d-a", "d-b", "d-b"]


def test_in_flight_is_bounded_in_number_and_age(cluster: Cluster) -> None:
    cluster.conductor._placements.in_flight = InFlightTable(max_requests=3, max_age_s=50.0)
    for i in range(5):
        cluster.route(f"r{i}")
    assert cluster.conductor.statistics().in_flight == 3
    cluster.clock.advance(51)
    cluster.route("late", routing_keys=())
    assert cluster.conductor.statistics().in_flight == 1
    assert cluster.conductor.statistics().indexed_blocks == 0


def test_round_robin_takes_turns_whatever_is_predicted() -> None:
    cluster = Cluster("round-robin")
    for node in ("a", "b"):
        cluster.join(f"p-{node}", Role.PREFILL, node)
        cluster.join(f"d-{node}", Role.DECODE, node)
    cluster.stored("p-b", TierKind.DEVICE, blocks(0, 32))
    assert [names(cluster.route(f"r{i}")) for i in range(3)] == [
        ("p-a", "d-a"),
        ("p-b", "d-b"),
        ("p-a", "d-b"),
    ]


def test_slots_are_used_again(cluster: Cluster) -> None:
    for epoch in range(1, 200):
        cluster.join("p-c", Role.PREFILL, "b", epoch)
        cluster.stored("p-c", TierKind.DEVICE, blocks(0, 32))
        cluster.conductor.forget(MemberId("p-c"))
    feed = cluster.join("p-c", Role.PREFILL, "b")
    assert feed._slot == 6
    assert cluster.conductor.statistics().indexed_blocks == 0


def test_routing_keys_in_bulk_equal_those_one_by_one() -> None:
    assert list(RoutingKeys.of_hashes(HASHES)) == [routing_key(h) for h in HASHES]
    assert list(RoutingKeys.of_hashes([])) == []

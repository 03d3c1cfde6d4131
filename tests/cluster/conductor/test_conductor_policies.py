"""Each policy chooses from given prospects."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.conductor.config import PolicyName
from cluster.conductor.matching import TierBlocks
from cluster.conductor.policies.base import Policy
from cluster.conductor.policies.registry import POLICY_NAMES, make_policy
from cluster.conductor.prospects import Prospects
from cluster.conductor.testing import StagedWorker, a_request, stage
from cluster.conductor.types import Role
from kvstore.core.errors import InvalidArgumentError


def prefill(name: str, **known: object) -> StagedWorker:
    return StagedWorker(name, Role.PREFILL, **known)  # type: ignore[arg-type]


def decode(name: str, **known: object) -> StagedWorker:
    return StagedWorker(name, Role.DECODE, **known)  # type: ignore[arg-type]


def chosen(policy: Policy, prospects: Prospects) -> tuple[str | None, str]:
    choice = policy.choose(prospects)
    decoder = prospects.decode.members[choice.decode].member_id
    if choice.prefill is None:
        return None, decoder
    assert prospects.prefill is not None
    return prospects.prefill.members[choice.prefill].member_id, decoder


def test_names_are_those_of_the_configuration() -> None:
    assert get_args(PolicyName) == POLICY_NAMES


def test_unknown_name_lists_those_known() -> None:
    with pytest.raises(InvalidArgumentError, match="choose one of joint, "):
        make_policy("best")


@pytest.mark.parametrize("name", POLICY_NAMES)
def test_any_policy_places_on_any_cluster(name: str) -> None:
    policy = make_policy(name)
    for workers in (
        [decode("d0")],
        [decode("d0"), decode("d1", node="a")],
        [prefill("p0"), decode("d0", node="a")],
        [prefill("p0", node="a"), prefill("p1", zone="z"), decode("d0", zone="y"), decode("d1")],
    ):
        split = any(worker.role is Role.PREFILL for worker in workers)
        for request in (a_request(5), a_request(5000), replace(a_request(), session="s")):
            prefiller, decoder = chosen(policy, stage(workers, request, on_nodes=3))
            assert decoder in {w.name for w in workers if w.role is Role.DECODE}
            assert prefiller in {None, *(w.name for w in workers if w.role is Role.PREFILL)}
            if name != "joint":
                assert (prefiller is not None) == split
        bypass = replace(a_request(), bypass_cache=True, routing_keys=())
        assert chosen(policy, stage(workers, bypass))[0] is None


def test_random_is_even_and_the_same_for_the_same_seed() -> None:
    workers = [decode(f"d{i}") for i in range(4)]
    runs = [
        [chosen(policy, stage(workers))[1] for _ in range(400)]
        for policy in (make_policy("random", 7), make_policy("random", 7), make_policy("random", 8))
    ]
    assert runs[0] == runs[1] != runs[2]
    assert min(Counter(runs[0]).values()) > 60


def test_round_robin_takes_turns() -> None:
    policy = make_policy("round-robin")
    workers = [prefill("p0", queue_s=9.0), prefill("p1"), decode("d0"), decode("d1")]
    assert [chosen(policy, stage(workers)) for _ in range(5)] == [
        ("p0", "d0"),
        ("p1", "d1"),
        ("p0", "d1"),
        ("p1", "d0"),
        ("p0", "d0"),
    ]
    assert chosen(policy, stage(workers[2:])) == (None, "d1")


def test_least_loaded_ignores_caches() -> None:
    policy = make_policy("least-loaded")
    warm = TierBlocks(90, 0, 0)
    workers = [
        prefill("p0", queue_s=0.2, prefix=warm),
        prefill("p1", queue_s=0.1),
        decode("d0", sequences=3),
        decode("d1", sequences=2),
    ]
    assert chosen(policy, stage(workers)) == ("p1", "d1")
    alone = [decode("d0", queue_s=0.1, prefix=warm), decode("d1", sequences=5), decode("d2")]
    assert chosen(policy, stage(alone)) == (None, "d2")


def of_session(number: int) -> Prospects:
    request = replace(a_request(), session=f"s{number}")
    return stage([decode(f"d{i}") for i in range(5)], request)


def test_a_session_stays_and_sessions_spread() -> None:
    policy = make_policy("session-sticky")
    homes = {n: chosen(policy, of_session(n))[1] for n in range(200)}
    assert homes == {n: chosen(policy, of_session(n))[1] for n in range(200)}
    assert len(Counter(homes.values())) == 5
    assert min(Counter(homes.values()).values()) > 20


def test_a_worker_that_goes_moves_its_own_sessions_only() -> None:
    policy = make_policy("session-sticky")
    for number in range(100):
        before = chosen(policy, of_session(number))[1]
        request = replace(a_request(), session=f"s{number}")
        rest = [decode(f"d{i}") for i in range(5) if i != 2]
        after = chosen(policy, stage(rest, request))[1]
        assert after == before or before == "d2"


def test_a_session_leaves_an_overloaded_worker() -> None:
    policy = make_policy("session-sticky")
    request = replace(a_request(), session="s")
    home = chosen(policy, stage([decode(f"d{i}") for i in range(4)], request))[1]
    workers = [decode(f"d{i}", sequences=50 if f"d{i}" == home else 3) for i in range(4)]
    assert chosen(policy, stage(workers, request))[1] != home


def test_without_a_session_the_first_block_decides() -> None:
    policy = make_policy("session-sticky")
    workers = [decode(f"d{i}") for i in range(8)]
    assert (
        len({chosen(policy, stage(workers, a_request(t)))[1] for t in range(100, 3000, 100)}) == 1
    )


def test_local_cache_aware_counts_only_its_own() -> None:
    policy = make_policy("local-cache-aware")
    workers = [decode("d0", node="a"), decode("d1", node="b", prefix=TierBlocks(3, 0, 0))]
    assert chosen(policy, stage(workers, on_nodes=90))[1] == "d1"


def test_global_cache_aware_pulls_beyond_the_threshold() -> None:
    """Algorithm 1: the worker with the shorter queue pulls, once others have enough more."""
    workers = [
        decode("d0", node="a", prefix=TierBlocks(60, 0, 0), queue_s=0.15),
        decode("d1", node="b", prefix=TierBlocks(50, 0, 0), queue_s=0.14),
    ]
    prospects = stage(workers, on_nodes=60)
    assert chosen(make_policy("global-cache-aware", balancing_threshold=1.1), prospects)[1] == "d1"
    assert chosen(make_policy("global-cache-aware", balancing_threshold=1.3), prospects)[1] == "d0"


def test_algorithm_1_takes_a_slow_transfer_where_joint_does_not() -> None:
    slow = (0.002, 5e-10, 2e-9, 30.0, 1e-9)
    workers = [decode("d0", node="a", load=slow), decode("d1", queue_s=1.0)]
    prospects = stage(workers, on_nodes=60)
    assert chosen(make_policy("global-cache-aware"), prospects)[1] == "d1"
    assert chosen(make_policy("joint"), prospects)[1] == "d0"


@given(st.lists(st.floats(0, 10), min_size=1, max_size=6), st.integers(0, 5))
def test_cache_aware_policies_find_the_least(queues: list[float], cached: int) -> None:
    workers = [
        decode(f"d{i}", queue_s=queue, prefix=TierBlocks(cached * (i % 2), 0, 0))
        for i, queue in enumerate(queues)
    ]
    prospects = stage(workers)
    ttft_s = prospects.alone.local_ttft_s
    for name in ("local-cache-aware", "global-cache-aware"):
        assert ttft_s[make_policy(name).choose(prospects).decode] == ttft_s.min()


def test_the_policy_in_the_docs_works() -> None:
    text = (Path(__file__).parents[3] / "docs" / "policies.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert code.count("\n") <= 30
    names: dict[str, object] = {}
    exec(code, names)
    policy: Policy = names["CachedFirst"]()  # type: ignore[operator]
    warm, late = TierBlocks(50, 0, 0), TierBlocks(90, 0, 0)
    workers = [decode("d0"), decode("d1", prefix=warm), decode("d2", prefix=late, queue_s=9.0)]
    assert chosen(policy, stage(workers)) == (None, "d1")
    assert (
        chosen(policy, stage([prefill("p0"), prefill("p1", prefix=warm), decode("d0")]))[0] == "p1"
    )

"""The default policy, term by term."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.conductor.matching import TierBlocks
from cluster.conductor.policies.joint import Joint
from cluster.conductor.testing import LAYOUT, StagedWorker, a_request, stage
from cluster.conductor.types import Request, Role, Targets

ALL = TierBlocks(99, 0, 0)


def prefill(name: str, **known: object) -> StagedWorker:
    return StagedWorker(name, Role.PREFILL, **known)  # type: ignore[arg-type]


def decode(name: str, **known: object) -> StagedWorker:
    return StagedWorker(name, Role.DECODE, **known)  # type: ignore[arg-type]


def chosen(
    *workers: StagedWorker, request: Request | None = None, **options: float
) -> tuple[str | None, str]:
    prospects = stage(workers, request, **options)  # type: ignore[arg-type]
    choice = Joint().choose(prospects)
    name = None
    if choice.prefill is not None:
        assert prospects.prefill is not None
        name = prospects.prefill.members[choice.prefill].member_id
    return name, prospects.decode.members[choice.decode].member_id


def with_targets(tokens: int = 1600, ttft_s: float = inf, itl_s: float = inf) -> Request:
    return replace(a_request(tokens), targets=Targets(ttft_s, itl_s))


def test_shortest_queue() -> None:
    assert chosen(prefill("p0", queue_s=1.0), prefill("p1"), decode("d0")) == ("p1", "d0")


def test_prefix_saves_work() -> None:
    warm = prefill("p1", prefix=TierBlocks(80, 0, 0))
    assert chosen(prefill("p0"), warm, decode("d0")) == ("p1", "d0")


def test_a_long_queue_outweighs_a_prefix() -> None:
    warm = decode("d1", prefix=ALL, queue_s=2.0)
    assert chosen(decode("d0"), warm) == (None, "d0")


def test_calmer_decode_worker() -> None:
    assert chosen(prefill("p0"), decode("d0", sequences=20), decode("d1"))[1] == "d1"


def test_fuller_memory_slows_decoding() -> None:
    assert chosen(prefill("p0"), decode("d0", tokens=5e5), decode("d1"))[1] == "d1"


def test_decode_worker_of_the_same_node() -> None:
    workers = prefill("p0", node="a"), decode("d0", node="b"), decode("d1", node="a")
    assert chosen(*workers) == ("p0", "d1")


def test_decode_worker_of_the_same_zone() -> None:
    far, near = decode("d0", node="b", zone="y"), decode("d1", node="c", zone="z")
    assert chosen(prefill("p0", node="a", zone="z"), far, near, across_zones=1000.0)[1] == "d1"
    assert chosen(prefill("p0", node="a", zone="y"), far, near, across_zones=1000.0)[1] == "d0"


def test_hand_over_counts_when_the_prefill_worker_is_chosen() -> None:
    away = prefill("p0", node="b", zone="y")
    near = prefill("p1", node="a", zone="z", queue_s=0.03)
    here = decode("d0", node="a", zone="z")
    assert chosen(away, near, here, across_zones=100.0) == ("p1", "d0")
    assert chosen(away, replace(near, queue_s=2.0), here, across_zones=100.0) == ("p0", "d0")


def test_a_prompt_that_is_cached_where_it_decodes_stays_there() -> None:
    """Conditional disaggregation."""
    assert chosen(prefill("p0"), decode("d0", prefix=ALL)) == (None, "d0")


def test_a_long_uncached_prompt_does_not() -> None:
    assert chosen(prefill("p0", node="a"), decode("d0", node="a"))[0] == "p0"
    assert chosen(prefill("p0", queue_s=30.0), decode("d0"))[0] is None  # unless it waits long


def test_nor_where_it_would_stall_many() -> None:
    request = a_request(4000)
    half = TierBlocks(130, 0, 0)
    idle, busy = decode("d0", prefix=half), decode("d0", prefix=half, sequences=60)
    other = prefill("p0", prefix=TierBlocks(120, 0, 0))
    assert chosen(other, idle, request=request)[0] is None
    assert chosen(other, busy, request=request)[0] == "p0"


def test_memory_is_the_last_resort() -> None:
    full = decode("d0", free_blocks=1)
    assert chosen(full, decode("d1", queue_s=100.0, sequences=40)) == (None, "d1")
    assert chosen(full) == (None, "d0")


def test_equal_workers_share_by_load() -> None:
    prefills = prefill("p0", routed=50), prefill("p1", routed=3)
    assert chosen(*prefills, decode("d0")) == ("p1", "d0")
    assert chosen(decode("d0", routed=9), decode("d1", routed=8)) == (None, "d1")


def test_own_target_for_the_first_token() -> None:
    """The wait is longer at d0, but the pace is worse at d1."""
    workers = decode("d0", queue_s=1.0), decode("d1", sequences=12)
    assert chosen(*workers)[1] == "d0"
    assert chosen(*workers, request=with_targets(ttft_s=0.7))[1] == "d1"


def test_own_target_for_the_pace() -> None:
    workers = decode("d0", queue_s=2.0), decode("d1", sequences=10)
    assert chosen(*workers)[1] == "d1"
    assert chosen(*workers, request=with_targets(itl_s=0.025))[1] == "d0"


def test_targets_of_those_that_decode_there() -> None:
    """Without a target of its own, a request keeps away from where it would break others'."""
    near_limit = decode("d0", tokens=1e5, sequences=2, targeted=2, itl_target_s=0.026)
    other = decode("d1", tokens=1e5, sequences=3, queue_s=0.05)
    assert chosen(replace(near_limit, targeted=0), other)[1] == "d0"
    assert chosen(near_limit, other)[1] == "d1"


def test_work_counts_more_when_there_is_little_to_spare() -> None:
    """The cached worker has a queue; recomputing elsewhere is sooner, but costs the cluster."""
    warm, cold = decode("d0", prefix=ALL, queue_s=0.25), decode("d1")
    assert chosen(warm, cold)[1] == "d1"
    busy = [replace(worker, stall_s=6.0) for worker in (warm, cold)]
    assert chosen(*busy)[1] == "d0"


def test_a_copy_of_a_cold_prefix_costs_more_than_of_a_hot_one() -> None:
    """Where most prompts are found cached, copies displace what is asked for; not so if the prefix
    is asked for all the time."""
    warm, cold = decode("d0", node="a", prefix=ALL, queue_s=0.08), decode("d1", node="b")
    prospects = stage([warm, cold], on_nodes=99)
    learned = Joint()
    for number in range(200):  # prompts of their own, found cached
        request = a_request(1600, f"r{number}")
        keys = [key + 1000 * number for key in request.routing_keys]
        known = replace(request, routing_keys=keys)  # type: ignore[arg-type]
        learned.choose(stage([decode("d0", prefix=ALL)], known))
    assert learned.choose(prospects).decode == 0
    choices = [learned.choose(prospects).decode for _ in range(50)]
    assert choices[-1] == 1
    assert Joint().choose(prospects).decode == 1  # nothing was ever found cached: nothing to lose


def test_one_hot_prefix_changes_nothing_for_the_others() -> None:
    policy = Joint()
    hot = [decode("d0", prefix=ALL, queue_s=9.0), decode("d1", prefix=ALL), decode("d2")]
    own = [decode("d0"), decode("d1"), decode("d2", prefix=TierBlocks(50, 0, 0))]
    for _ in range(100):
        assert policy.choose(stage(hot)).decode == 1
        assert policy.choose(stage(own, a_request(1600, "other"))).decode == 2


times = st.floats(0, 3)
places = st.sampled_from([("", ""), ("a", "y"), ("b", "y"), ("c", "z")])
anywhere = st.tuples(times, st.integers(0, 20), places, st.integers(0, 90))


@settings(max_examples=150)
@given(
    st.lists(anywhere, min_size=1, max_size=4),
    st.lists(anywhere, min_size=1, max_size=4),
    st.sampled_from([inf, 0.5]),
)
def test_pair_is_as_good_as_the_best_of_all_pairs(
    prefills: list[tuple[float, int, tuple[str, str], int]],
    decodes: list[tuple[float, int, tuple[str, str], int]],
    ttft_s: float,
) -> None:
    """Restricted to one pair, the policy cannot do better than what it chose among all."""

    def worker(role: Role, i: int, known: tuple[float, int, tuple[str, str], int]) -> StagedWorker:
        queue_s, sequences, (node, zone), cached = known
        prefix = TierBlocks(cached, 0, 0)
        return StagedWorker(
            f"{role.name}{i}", role, node, zone, queue_s, sequences=sequences, prefix=prefix
        )

    ps = [worker(Role.PREFILL, i, known) for i, known in enumerate(prefills)]
    ds = [worker(Role.DECODE, i, known) for i, known in enumerate(decodes)]
    request = with_targets(ttft_s=ttft_s)
    name, decoder = chosen(*ps, *ds, request=request)
    if name is None:
        return

    def felt_s(p: StagedWorker, d: StagedWorker) -> float:
        prospects = stage([p, d], request)
        assert prospects.prefill is not None
        terms = prospects.decode.candidate(0)
        pace = 64 * (terms.itl_s + (terms.itl_s - terms.itl_before_s) * d.sequences)
        late = 0.0
        if ttft_s < inf:
            ttft = float(prospects.prefill.ttft_s[0])
            late = 10.0 * min(max((ttft / ttft_s - 0.8) / 0.4, 0.0), 1.0)
        return float(prospects.prefill.ttft_s[0]) + prospects.join_s(0, 0) + pace + late

    p = next(w for w in ps if w.name == name)
    d = next(w for w in ds if w.name == decoder)
    best = min(felt_s(p, d) for p in ps for d in ds)
    tolerance = 0.05 * max(w.queue_s + 1.0 for w in ps)
    assert felt_s(p, d) <= best + tolerance + 1e-9


def test_a_burst_spreads_over_equal_workers() -> None:
    """As each placement makes its worker a little less attractive."""
    policy = Joint()
    given = Counter[str]()
    for _ in range(40):
        workers = [decode(f"d{i}", routed=given[f"d{i}"]) for i in range(8)]
        prospects = stage(workers)
        row = policy.choose(prospects).decode
        given[prospects.decode.members[row].member_id] += 1
    assert set(given.values()) == {5}


@pytest.mark.parametrize("tokens", [1, LAYOUT.block_size_tokens, 10**6])
@pytest.mark.parametrize("target", [1e-300, 1e-9, 1e300, inf])
def test_absurd_requests_find_a_place(tokens: int, target: float) -> None:
    request = with_targets(tokens, target, target)
    workers = prefill("p0", node="a"), decode("d0", targeted=3, itl_target_s=target, sequences=3)
    assert chosen(*workers, request=request)[1] == "d0"

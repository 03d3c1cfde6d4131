"""The parts of the gateway that need no server."""

from __future__ import annotations

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Gauge

from cluster.gateway import sse
from cluster.gateway.admission import InFlight
from cluster.gateway.catalog import FORGET_S, FRESH_S, ModelCatalog
from cluster.gateway.channels import WorkerChannels
from cluster.gateway.errors import (
    BadFieldError,
    ContextLengthError,
    ModelNotFoundError,
    NotServingError,
    answer_of,
)
from cluster.gateway.observation import Observation
from cluster.gateway.prompts import answer_tokens_max
from cluster.gateway.reports import CompletionReporter
from cluster.wire.v1 import conductor_pb2 as conductor
from kvstore.core import errors
from kvstore.observability.metrics import ServingMetrics
from model_runner.wire.v1 import generation_pb2 as generation


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (errors.InvalidArgumentError("x"), 400, None),
        (BadFieldError("prompt", "x"), 400, None),
        (ContextLengthError("x"), 400, "context_length_exceeded"),
        (ModelNotFoundError("x"), 404, "model_not_found"),
        (errors.ResourceExhaustedError("x"), 429, "rate_limit_exceeded"),
        (errors.ProtocolError("x"), 500, "internal_error"),
        (errors.KVStoreError("x"), 500, "internal_error"),
        (errors.UnavailableError("x"), 503, "service_unavailable"),
        (errors.ConfigurationError("x"), 503, "service_unavailable"),
        (NotServingError("x"), 503, "service_unavailable"),
        (errors.DeadlineExceededError("x"), 504, "timeout"),
    ],
)
def test_every_error_has_a_status(error, status, code) -> None:
    answer = answer_of(error)
    assert (answer.status, answer.code) == (status, code)
    assert "x" in answer.message
    assert ("retry-after" in answer.headers()) == (status in (429, 503))


@given(st.dictionaries(st.text(), st.text()))
def test_an_event_is_one_event_whatever_the_text(data) -> None:
    event = sse.event(data).decode()
    assert event.count("\n") == 2
    assert json.loads(event.removeprefix("data: ")) == data


@given(
    st.integers(1, 100),
    st.integers(1, 100),
    st.none() | st.integers(1, 100),
    st.none() | st.just(16),
)
def test_prompt_and_answer_fit_the_context_or_are_refused(prompt, context, asked, default) -> None:
    if prompt + (asked or 1) > context:
        with pytest.raises(ContextLengthError, match=rf"\b{context}\b.*\b{prompt}\b"):
            answer_tokens_max(prompt, context, asked, default)
        return
    granted = answer_tokens_max(prompt, context, asked, default)
    assert 1 <= granted <= context - prompt
    assert asked in (None, granted)
    assert default is None or asked or granted <= default


def test_admission_counts_and_refuses() -> None:
    registry = CollectorRegistry()
    in_flight = InFlight(3, Gauge("g", "g", registry=registry))
    with in_flight.admit(2):
        assert registry.get_sample_value("g") == 2
        with pytest.raises(errors.ResourceExhaustedError), in_flight.admit(2):
            pass
        with in_flight.admit(1):
            assert registry.get_sample_value("g") == 3
    assert registry.get_sample_value("g") == 0
    with pytest.raises(BadFieldError), in_flight.admit(4):
        pass


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class SlowConductor:
    """Counts what it is asked; answers when told to."""

    def __init__(self) -> None:
        self.asked = 0
        self.go_on = asyncio.Event()
        self.members: list[conductor.MemberStatus] = []

    async def complete(self, request: conductor.CompleteRequest) -> None:
        self.asked += 1
        await self.go_on.wait()

    async def list_members(
        self, *, deadline_s: float | None = None
    ) -> list[conductor.MemberStatus]:
        self.asked += 1
        return self.members


async def test_reports_beyond_the_bound_are_dropped() -> None:
    center = SlowConductor()
    reporter = CompletionReporter(center, pending_max=2)
    for _ in range(5):
        reporter.report(conductor.CompleteRequest())
    assert reporter.dropped == 3
    center.go_on.set()
    await reporter.close()
    assert center.asked == 2


async def test_reports_that_hang_do_not_outlive_close(monkeypatch) -> None:
    monkeypatch.setattr("cluster.gateway.reports._CLOSE_WAIT_S", 0.01)
    reporter = CompletionReporter(SlowConductor())
    reporter.report(conductor.CompleteRequest())
    await reporter.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}


def decode_worker(name: str, running: int, *, draining: bool = False) -> conductor.MemberStatus:
    member = conductor.Member(
        member_id=name, role=conductor.ROLE_DECODE, model=conductor.ModelInfo(name="tiny")
    )
    load = conductor.Load(running=running)
    return conductor.MemberStatus(member=member, load=load, draining=draining)


async def test_catalog_asks_once_while_its_answer_is_fresh() -> None:
    center, clock = SlowConductor(), Clock()
    center.members = [decode_worker("a", 1)]
    catalog = ModelCatalog(center, clock)
    await asyncio.gather(*(catalog.get("tiny") for _ in range(10)))
    assert center.asked == 1
    clock.now_s += max(FRESH_S, FORGET_S) + 0.1
    center.members = []
    with pytest.raises(NotServingError):
        await catalog.get("tiny")
    assert center.asked == 2


async def test_other_decode_worker_is_the_least_loaded_one_that_is_not_leaving() -> None:
    center = SlowConductor()
    center.members = [
        decode_worker("a", 0),
        decode_worker("b", 5),
        decode_worker("c", 3),
        decode_worker("d", 1, draining=True),
    ]
    catalog = ModelCatalog(center, Clock())
    await catalog.members()
    failed = center.members[0].member
    other = catalog.other_decode_worker("tiny", failed)
    assert other is not None
    assert other.member_id == "c"
    assert catalog.other_decode_worker("huge", failed) is None


async def test_idle_channels_are_bounded() -> None:
    channels = WorkerChannels(channels_max=2)
    for port in (1, 2, 3):
        stream = channels.decode(f"127.0.0.1:{port}", generation.GenerateRequest(), timeout_s=5)
        with pytest.raises(errors.UnavailableError, match=f"127.0.0.1:{port}"):
            await anext(stream)
    assert list(channels._entries) == ["127.0.0.1:2", "127.0.0.1:3"]
    await channels.close()
    assert not channels._entries


def test_observation_figures() -> None:
    clock, metrics = Clock(), ServingMetrics()
    seen = Observation(metrics, clock, model="m", prompt_tokens=20, arrived_s=clock())
    clock.now_s += 2
    hits = generation.HitTokens(host=8)
    seen.chunk(generation.GenerateChunk(token_ids=[1], hit_tokens=hits, compute_s=1.5, queue_s=0.5))
    seen.chunk(generation.GenerateChunk(published=True))
    clock.now_s += 3
    seen.chunk(generation.GenerateChunk(token_ids=[1, 2, 3], hit_tokens=generation.HitTokens()))
    completion = seen.completion("r", failed=False, as_routed=True)
    assert completion == conductor.CompleteRequest(
        request_id="r",
        ttft_s=2,
        prefill_compute_s=1.5,
        computed_tokens=12,
        itl_mean_s=1,
        output_tokens=4,
        queue_s=0.5,
        hits=conductor.HitTokens(host=8),
    )
    unlearned = conductor.CompleteRequest(request_id="r", output_tokens=4)
    assert seen.completion("r", failed=False, as_routed=False) == unlearned
    sample = metrics.registry.get_sample_value
    itl = "gen_ai_server_time_per_output_token_seconds"
    assert sample(f"{itl}_sum", {"model": "m"}) == 3
    assert sample(f"{itl}_count", {"model": "m"}) == 3
    assert sample("kvstore_gateway_hit_tokens_total", {"model": "m", "tier": "host"}) == 8
    assert seen.hit_tokens.host == 8


def test_observation_without_a_token() -> None:
    clock = Clock()
    seen = Observation(ServingMetrics(), clock, model="m", prompt_tokens=20, arrived_s=clock())
    expected = conductor.CompleteRequest(request_id="r", failed=True)
    assert seen.completion("r", failed=True, as_routed=True) == expected


def test_metrics_of_two_servers_do_not_mix() -> None:
    one, other = ServingMetrics(), ServingMetrics()
    one.requests.labels("/", "200").inc()
    labels = {"route": "/", "status": "200"}
    assert one.registry.get_sample_value("kvstore_gateway_requests_total", labels) == 1
    assert other.registry.get_sample_value("kvstore_gateway_requests_total", labels) is None

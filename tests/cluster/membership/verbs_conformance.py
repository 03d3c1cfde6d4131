"""What every way to a conductor must do; for one whose queue holds one request for 0.3 s."""

from __future__ import annotations

import asyncio

import pytest

from cluster.membership.verbs import ConductorVerbs
from cluster.wire.v1 import conductor_pb2 as pb
from kvstore.core.errors import (
    DeadlineExceededError,
    InvalidArgumentError,
    NotFoundError,
    OverloadedError,
    SessionExpiredError,
    UnavailableError,
)

from .members import request, until, worker

SETTINGS: dict[str, object] = {
    "member_ttl_ms": 60_000,
    "queue_max": 1,
    "queue_wait_ms": 300,
    "queue_ahead_ms": 50,
}


async def running(verbs: ConductorVerbs) -> int:
    """Requests that weigh on the only worker: its batch as the next one would see it."""
    await verbs.route(request("probe", blocks=0, prompt_tokens=1))
    (candidate,) = (await verbs.explain("probe")).decodes
    await verbs.complete(pb.CompleteRequest(request_id="probe"))
    return candidate.batch - 1


class VerbsConformance:
    """Subclasses give the fixture `verbs`: a conductor with `SETTINGS` that nobody spoke to."""

    async def test_members_come_tell_and_go(self, verbs: ConductorVerbs) -> None:
        assert await verbs.register(worker("d-0", pb.ROLE_DECODE), 3) == 60
        load = pb.Load(running=2, waiting=1, free_blocks=5, total_blocks=9)
        await verbs.heartbeat("d-0", 3, load)
        (status,) = await verbs.list_members()
        assert (status.member.member_id, status.load) == ("d-0", load)
        with pytest.raises(SessionExpiredError, match="register again"):
            await verbs.heartbeat("d-0", 2, load)
        await verbs.drain("d-0")
        with pytest.raises(UnavailableError, match="no decode worker"):
            await verbs.route(request())

    async def test_a_reservation_counts_until_it_is_released(self, verbs: ConductorVerbs) -> None:
        await verbs.register(worker("d-0", pb.ROLE_DECODE), 1)
        first = await verbs.reserve(request("a"))
        second = await verbs.reserve(request("b"), lifetime_s=30)
        assert first.placement.decode.member_id == "d-0"
        assert (first.lifetime_ms, second.lifetime_ms) == (60_000, 30_000)
        assert await running(verbs) == 2
        outcome = pb.CompleteRequest(ttft_s=0.2, itl_mean_s=0.01, output_tokens=8)
        for _ in range(2):
            await verbs.release(first.reservation_id, outcome=outcome)
            assert await running(verbs) == 1
        (status,) = await verbs.list_members()
        assert status.ttft_error > 0
        await verbs.release(second.reservation_id)
        assert await running(verbs) == 0
        await verbs.release(12345)

    async def test_a_release_does_not_end_what_came_after(self, verbs: ConductorVerbs) -> None:
        await verbs.register(worker("d-0", pb.ROLE_DECODE), 1)
        first = await verbs.reserve(request("a"))
        await verbs.route(request("a"))
        await verbs.release(first.reservation_id)
        assert await running(verbs) == 1
        again = await verbs.reserve(request("a"))
        await verbs.complete(pb.CompleteRequest(request_id="a"))
        await verbs.route(request("a"))
        await verbs.release(again.reservation_id)
        assert await running(verbs) == 1

    async def test_a_reservation_ends_by_itself(self, verbs: ConductorVerbs) -> None:
        await verbs.register(worker("d-0", pb.ROLE_DECODE), 1)
        await verbs.reserve(request("a"), lifetime_s=0.01)

        async def over() -> bool:
            return await running(verbs) == 0

        await until(over)

    async def test_decisions_are_explained(self, verbs: ConductorVerbs) -> None:
        for name, role in (("p-0", pb.ROLE_PREFILL), ("d-0", pb.ROLE_DECODE)):
            await verbs.register(worker(name, role), 1)
        placed = await verbs.route(request("a", tenant="t"))
        told = await verbs.explain("a")
        assert (told.request_id, told.model, told.policy) == ("a", "tiny", "Joint")
        assert told.prompt_tokens == 165
        assert (told.prefill, told.decode) == (placed.prefill.member_id, placed.decode.member_id)
        assert [c.member_id for c in (*told.prefills, *told.alone)] == ["p-0", "d-0"]
        assert placed.chosen in (*told.prefills, *told.alone)
        (decode,) = told.decodes
        assert decode.itl_s == placed.itl_s
        assert 0 <= told.age_s < 60
        with pytest.raises(NotFoundError, match="'b'"):
            await verbs.explain("b")

    async def test_refused_with_the_time_to_retry(self, verbs: ConductorVerbs) -> None:
        await verbs.register(worker("d-0", pb.ROLE_DECODE), 1)
        with pytest.raises(OverloadedError, match="time to first token") as caught:
            await verbs.route(request("a", ttft_target_s=1e-6))
        assert 0 < caught.value.retry_after_s < 1
        assert "time to first token" in (await verbs.explain("a")).refused
        for bad in ({"ttft_target_s": -1.0}, {"ttft_target_s": float("nan")}, {"priority": 101}):
            with pytest.raises(InvalidArgumentError):
                await verbs.route(request("a", **bad))

    async def test_requests_wait_their_turn(self, verbs: ConductorVerbs) -> None:
        await verbs.register(worker("d-0", pb.ROLE_DECODE), 1)
        long = {"prompt_tokens": 1 << 20, "blocks": 0}
        await verbs.route(request("first", **long))  # type: ignore[arg-type]
        waiting = asyncio.create_task(verbs.route(request("second")))
        await asyncio.sleep(0.05)
        with pytest.raises(OverloadedError, match="queue is full"):
            await verbs.route(request("third"))
        with pytest.raises(OverloadedError, match="waited for"):
            await waiting
        waiting = asyncio.create_task(verbs.route(request("fourth")))
        await asyncio.sleep(0.05)
        await verbs.register(worker("d-1", pb.ROLE_DECODE), 1)
        assert (await waiting).decode.member_id == "d-1"

    async def test_who_does_not_wait_any_more_frees_the_place(self, verbs: ConductorVerbs) -> None:
        await verbs.register(worker("d-0", pb.ROLE_DECODE), 1)
        await verbs.route(request("first", prompt_tokens=1 << 20, blocks=0))
        with pytest.raises(DeadlineExceededError):
            await verbs.route(request("late"), deadline_s=0.05)
        waiting = asyncio.create_task(verbs.route(request("cancelled")))
        await asyncio.sleep(0.02)
        waiting.cancel()
        await asyncio.sleep(0.02)
        with pytest.raises(OverloadedError, match="waited for"):  # not: the queue is full
            await verbs.route(request("next"))

    async def test_asked_anew_while_it_waits(self, verbs: ConductorVerbs) -> None:
        await verbs.register(worker("d-0", pb.ROLE_DECODE), 1)
        await verbs.route(request("first", prompt_tokens=1 << 20, blocks=0))
        earlier = asyncio.create_task(verbs.route(request("a")))
        await asyncio.sleep(0.05)
        with pytest.raises(OverloadedError):
            await verbs.route(request("a"))
        with pytest.raises(UnavailableError, match="asked for anew"):
            await earlier

    @pytest.mark.parametrize(
        ("fields", "says"),
        [
            ({"routing_keys": b"k" * (8 << 17) + b"k" * 8}, "routing_keys"),
            ({"model": "m" * 257}, "model"),
            ({"model": ""}, "model"),
            ({"request_id": "r" * 257}, "request_id"),
            ({"tenant": "t" * 257}, "tenant"),
            ({"session": "s" * 257}, "session"),
        ],
    )
    async def test_what_arrives_is_bounded(
        self, verbs: ConductorVerbs, fields: dict[str, object], says: str
    ) -> None:
        await verbs.register(worker("d-0", pb.ROLE_DECODE), 1)
        asked = request(prompt_tokens=1 << 31)
        for name, value in fields.items():
            setattr(asked, name, value)
        for verb in (verbs.route, verbs.reserve):
            with pytest.raises(InvalidArgumentError, match=says):
                await verb(asked)
        with pytest.raises(InvalidArgumentError, match="lifetime_ms"):
            await verbs.reserve(request(), lifetime_s=901)
        with pytest.raises(InvalidArgumentError, match="zone"):
            await verbs.register(pb.Member(zone="z" * 5000, **MEMBER), 1)  # type: ignore[arg-type]
        with pytest.raises(InvalidArgumentError, match="itl_mean_s"):
            await verbs.release(1, outcome=pb.CompleteRequest(itl_mean_s=-1))

    async def test_closed(self, verbs: ConductorVerbs) -> None:
        await verbs.close()
        await verbs.close()


MEMBER: dict[str, object] = {
    "member_id": "n",
    "node_id": "n",
    "role": pb.ROLE_NODE,
    "grpc_address": "n:1",
}

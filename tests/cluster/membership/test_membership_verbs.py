"""The ways to a conductor that need nothing but this process."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest

from cluster.conductor.config import ConductorConfig
from cluster.membership.client import ConductorClient
from cluster.membership.reservations import Reservations
from cluster.membership.server import ConductorServer
from cluster.membership.verbs import ConductorVerbs
from cluster.wire.v1 import conductor_pb2 as pb
from cluster.wire.v1.conductor_pb2_grpc import ConductorServiceStub
from kvstore.core.errors import ResourceExhaustedError
from kvstore.core.ids import RequestId, ReservationId

from .members import request, worker
from .verbs_conformance import SETTINGS, VerbsConformance


class TestOverGrpc(VerbsConformance):
    @pytest.fixture
    async def verbs(self) -> AsyncIterator[ConductorVerbs]:
        server = ConductorServer(ConductorConfig.model_validate(SETTINGS))
        await server.start()
        async with ConductorClient(server.address) as client:
            yield client
        await server.stop()


class TestInProcess(VerbsConformance):
    @pytest.fixture
    async def verbs(self) -> AsyncIterator[ConductorVerbs]:
        server = ConductorServer(ConductorConfig.model_validate(SETTINGS))
        await server.start()
        yield server.verbs()
        await server.stop()


async def test_any_grpc_client_sees_the_code_and_when_to_retry(
    server: ConductorServer, client: ConductorClient
) -> None:
    await client.register(worker("d-0", pb.ROLE_DECODE), 1)
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub = ConductorServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Route(request(ttft_target_s=1e-6), timeout=5)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert int(dict(caught.value.trailing_metadata())["retry-after-ms"]) >= 100
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Explain(pb.ExplainRequest(request_id="unknown"), timeout=5)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_reservations_are_bounded() -> None:
    reservations = Reservations(reservations_max=1)
    first = ReservationId(1)
    reservations.check_room()
    reservations.add(first, RequestId("a"), 10.0)
    with pytest.raises(ResourceExhaustedError, match="1 requests are reserved"):
        reservations.check_room()
    assert reservations.expire(9.9) == []
    assert reservations.expire(10.0) == ["a"]
    reservations.check_room()
    assert reservations.end(first) is None


def test_only_the_last_reservation_of_a_request_counts() -> None:
    reservations = Reservations()
    for number in (1, 2):
        reservations.add(ReservationId(number), RequestId("a"), float(number))
    assert len(reservations) == 1
    assert reservations.end(ReservationId(1)) is None
    assert reservations.expire(1.5) == []
    assert reservations.expire(2.0) == ["a"]

"""What every transport does. Subclass it, say how to make a server and a channel, and collect it
with pytest (asyncio mode "auto")."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import cast

from google.protobuf.message import Message

from kvstore.core import errors
from kvstore.transports.base import Channel, Handler, Server
from kvstore.wire.v1 import node_pb2

SERVICE = node_pb2.DESCRIPTOR.services_by_name["NodeService"]

LONG_S = 20.0
"""Never reached unless a test fails."""

ERRORS = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, errors.KVStoreError)
]


class TransportConformance(ABC):
    """Handlers are called by the names of NodeService, whose messages serve as test data."""

    @abstractmethod
    def make_server(self, handlers: Mapping[str, Handler]) -> Server:
        """Not started."""

    @abstractmethod
    def make_channel(self, server: Server, max_in_flight: int) -> Channel:
        """To a started server."""

    @asynccontextmanager
    async def connected(
        self, handlers: Mapping[str, Handler], *, max_in_flight: int = 64
    ) -> AsyncIterator[tuple[Server, Channel]]:
        server = self.make_server(handlers)
        await server.start()
        channel = self.make_channel(server, max_in_flight)
        try:
            yield server, channel
        finally:
            await channel.close()
            await server.stop()

    async def test_answers_a_call(self) -> None:
        async with self.connected({"Match": double}) as (_, channel):
            assert await match_number(channel, 21) == 42

    async def test_calls_overlap_and_are_answered_in_any_order(self) -> None:
        gates = [asyncio.Event() for _ in range(8)]

        async def wait_for_the_next(request: Message) -> Message:
            number = _number(request)
            if number + 1 < len(gates):
                await gates[number + 1].wait()
            gates[number].set()
            return node_pb2.MatchResponse(num_matched=number)

        async with self.connected({"Match": wait_for_the_next}) as (_, channel):
            calls = [match_number(channel, number) for number in range(len(gates))]
            assert await asyncio.gather(*calls) == list(range(len(gates)))

    async def test_large_messages_pass(self) -> None:
        async def echo(request: Message) -> Message:
            keys = cast(node_pb2.MatchRequest, request).keys
            return node_pb2.MatchResponse(tiers=keys.block_hashes)

        async with self.connected({"Match": echo}) as (_, channel):
            request = node_pb2.MatchRequest()
            request.keys.block_hashes = bytes(range(256)) * (4 << 12)
            response = await channel.call(
                "Match", request, node_pb2.MatchResponse, deadline_s=LONG_S
            )
            assert response.tiers == request.keys.block_hashes

    async def test_every_error_arrives_as_itself(self) -> None:
        async def fail(request: Message) -> Message:
            raise ERRORS[_number(request)]("what happened: and what to do")

        async with self.connected({"Match": fail}) as (_, channel):
            for number, error_type in enumerate(ERRORS):
                error = await error_of(match_number(channel, number))
                assert type(error) is error_type
                assert str(error) == "what happened: and what to do"

    async def test_a_defect_in_a_handler_is_an_error_and_serving_goes_on(self) -> None:
        async def divide(request: Message) -> Message:
            return node_pb2.MatchResponse(num_matched=100 // _number(request))

        async with self.connected({"Match": divide}) as (_, channel):
            assert isinstance(await error_of(match_number(channel, 0)), errors.KVStoreError)
            assert await match_number(channel, 4) == 25

    async def test_an_unknown_method_is_a_protocol_error(self) -> None:
        async with self.connected({"Match": double}) as (_, channel):
            call = channel.call(
                "KeepAlive", node_pb2.KeepAliveRequest(), node_pb2.KeepAliveResponse, deadline_s=5
            )
            assert type(await error_of(call)) is errors.ProtocolError

    async def test_a_late_answer_is_deadline_exceeded_and_its_handler_is_cancelled(self) -> None:
        cancelled = asyncio.Event()

        async def hang(_: Message) -> Message:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()
            raise AssertionError("never set")

        async with self.connected({"Match": hang}) as (_, channel):
            error = await error_of(match_number(channel, 1, deadline_s=0.1))
            assert type(error) is errors.DeadlineExceededError
            async with asyncio.timeout(LONG_S):
                await cancelled.wait()

    async def test_calls_beyond_max_in_flight_wait_within_their_deadline(self) -> None:
        entered, gate = asyncio.Semaphore(0), asyncio.Event()

        async def wait(_: Message) -> Message:
            entered.release()
            await gate.wait()
            return node_pb2.MatchResponse(num_matched=1)

        async with self.connected({"Match": wait}, max_in_flight=2) as (_, channel):
            first = [asyncio.ensure_future(match_number(channel, i)) for i in range(2)]
            for _ in first:
                await entered.acquire()
            error = await error_of(match_number(channel, 2, deadline_s=0.1))
            assert type(error) is errors.DeadlineExceededError
            assert entered.locked(), "the third call must not have reached the server"
            gate.set()
            assert await asyncio.gather(*first) == [1, 1]

    async def test_stop_answers_what_is_in_flight(self) -> None:
        entered, gate = asyncio.Event(), asyncio.Event()

        async def wait(_: Message) -> Message:
            entered.set()
            await gate.wait()
            return node_pb2.MatchResponse(num_matched=7)

        async with self.connected({"Match": wait}) as (server, channel):
            call = asyncio.ensure_future(match_number(channel, 1))
            await entered.wait()
            stop = asyncio.ensure_future(server.stop())
            await asyncio.sleep(0)
            gate.set()
            assert await call == 7
            await stop

    async def test_without_a_server_calls_are_unavailable(self) -> None:
        async with self.connected({"Match": double}) as (server, channel):
            assert await match_number(channel, 1) == 2
            await server.stop()
            error = await error_of(match_number(channel, 1, deadline_s=0.3))
            assert type(error) is errors.UnavailableError

    async def test_a_closed_channel_is_unavailable(self) -> None:
        async with self.connected({"Match": double}) as (_, channel):
            await channel.close()
            assert type(await error_of(match_number(channel, 1))) is errors.UnavailableError

    async def test_stop_and_close_are_idempotent(self) -> None:
        async with self.connected({"Match": double}) as (server, channel):
            await channel.close()
            await channel.close()
            await server.stop()
            await server.stop()


async def double(request: Message) -> Message:
    return node_pb2.MatchResponse(num_matched=2 * _number(request))


def _number(request: Message) -> int:
    return len(cast(node_pb2.MatchRequest, request).keys.block_hashes)


async def match_number(channel: Channel, number: int, deadline_s: float = LONG_S) -> int:
    """A call that carries one small number each way."""
    request = node_pb2.MatchRequest()
    request.keys.block_hashes = bytes(number)
    response = await channel.call("Match", request, node_pb2.MatchResponse, deadline_s=deadline_s)
    return response.num_matched


async def error_of(call: object) -> BaseException:
    """What a call raises; a failure of the test if it does not."""
    (outcome,) = await asyncio.gather(call, return_exceptions=True)  # type: ignore[call-overload]
    assert isinstance(outcome, BaseException), "the call should have failed"
    return outcome

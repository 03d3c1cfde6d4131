"""The local transport: the suite of all transports, and what is its own."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Mapping

import pytest

from kvstore.core.errors import (
    ConfigurationError,
    DeadlineExceededError,
    LeaseExpiredError,
    ProtocolError,
    ResourceExhaustedError,
    UnavailableError,
)
from kvstore.testing.transport_conformance import (
    SERVICE,
    TransportConformance,
    double,
    error_of,
    match_number,
)
from kvstore.transports.base import Channel, Handler, Server
from kvstore.transports.unix import server as unix_server
from kvstore.transports.unix.channel import UnixChannel
from kvstore.transports.unix.frames import (
    MAX_FRAME_BYTES,
    FrameReader,
    Request,
    Response,
    parse_request,
    parse_response,
)
from kvstore.transports.unix.server import UnixServer
from kvstore.wire.v1 import node_pb2


class TestUnix(TransportConformance):
    def make_server(self, handlers: Mapping[str, Handler]) -> Server:
        return UnixServer(SERVICE, handlers)

    def make_channel(self, server: Server, max_in_flight: int) -> Channel:
        return UnixChannel(server.endpoint, max_in_flight=max_in_flight)


@pytest.mark.parametrize("seed", range(20))
def test_frames_survive_any_cut_of_the_stream(seed):
    seeded = random.Random(seed)
    payloads = [seeded.randbytes(seeded.choice([0, 1, 5, 1000])) for _ in range(20)]
    stream = b"".join(Response(i, i, payload).encode() for i, payload in enumerate(payloads))
    reader, frames, start = FrameReader(), [], 0
    while start < len(stream):
        size = seeded.choice([1, 2, 3, 7, 500, 5000])
        frames += reader.feed(stream[start : start + size])
        start += size
    assert [parse_response(frame) for frame in frames] == [
        Response(i, i, payload) for i, payload in enumerate(payloads)
    ]


def test_a_request_is_parsed_as_it_was_encoded():
    request = Request(7, 1.5, "Match", b"payload")
    (frame,) = FrameReader().feed(request.encode())
    assert parse_request(frame) == request


@pytest.mark.parametrize("frame", [b"", b"short", bytes(12) + b"\x09abc", bytes(12) + b"\x01\xff"])
def test_what_is_no_request_is_a_protocol_error(frame):
    with pytest.raises(ProtocolError):
        parse_request(frame)


def test_a_frame_that_is_too_long_is_a_protocol_error():
    with pytest.raises(ProtocolError, match=str(MAX_FRAME_BYTES)):
        list(FrameReader().feed((MAX_FRAME_BYTES + 1).to_bytes(4, "little")))


@pytest.mark.parametrize("garbage", [b"\xff" * 100, b"\x03\0\0\0abc"])
async def test_garbage_ends_its_connection_and_no_other(garbage):
    server = UnixServer(SERVICE, {"Match": double})
    await server.start()
    channel = UnixChannel(server.endpoint)
    assert await match_number(channel, 1) == 2
    reader, writer = await asyncio.open_unix_connection("\0" + server.endpoint[len("unix:@") :])
    writer.write(garbage)
    assert await reader.read() == b""
    writer.close()
    assert await match_number(channel, 3) == 6
    await channel.close()
    await server.stop()


async def test_another_user_is_refused(monkeypatch):
    monkeypatch.setattr(unix_server, "_peer_uid", lambda peer: 12_345)
    server = UnixServer(SERVICE, {"Match": double})
    await server.start()
    channel = UnixChannel(server.endpoint)
    assert isinstance(await error_of(match_number(channel, 1, deadline_s=5)), UnavailableError)
    await channel.close()
    await server.stop()


async def test_calls_in_flight_fail_at_once_when_the_node_goes_away():
    entered = asyncio.Event()

    async def hang(_):
        entered.set()
        await asyncio.Event().wait()

    server = UnixServer(SERVICE, {"Match": hang}, drain_s=0)
    await server.start()
    channel = UnixChannel(server.endpoint)
    call = asyncio.ensure_future(match_number(channel, 1))
    await entered.wait()
    for connection in list(server.connections):
        connection._transport.abort()
    assert isinstance(await error_of(call), UnavailableError)
    assert channel.lost
    await channel.close()
    await server.stop()


async def test_what_needs_no_waiting_is_answered_at_once_also_when_others_wait():
    entered, gate = asyncio.Event(), asyncio.Event()

    async def hang(request):
        entered.set()
        await gate.wait()
        return await double(request)

    def prompt(request):
        number = len(request.keys.block_hashes)
        if number == 7:
            raise LeaseExpiredError("seven")
        answer = node_pb2.MatchResponse(num_matched=number * 10)
        return answer if number != 1 else None

    server = UnixServer(SERVICE, {"Match": hang}, {"Match": prompt}, max_in_flight=1)
    await server.start()
    channel = UnixChannel(server.endpoint)
    waits = asyncio.create_task(match_number(channel, 1))
    await entered.wait()
    assert await match_number(channel, 2) == 20
    assert isinstance(await error_of(match_number(channel, 7)), LeaseExpiredError)
    assert isinstance(await error_of(match_number(channel, 1)), ResourceExhaustedError)
    gate.set()
    assert await waits == 2
    await channel.close()
    await server.stop()


async def test_each_call_ends_at_its_own_deadline():
    async def hang(_):
        await asyncio.Event().wait()

    server = UnixServer(SERVICE, {"Match": hang}, drain_s=0)
    await server.start()
    channel = UnixChannel(server.endpoint)
    long = asyncio.create_task(error_of(match_number(channel, 1, deadline_s=20)))
    await asyncio.sleep(0)
    middle = asyncio.create_task(error_of(match_number(channel, 1, deadline_s=0.2)))
    short = error_of(match_number(channel, 1, deadline_s=0.05))
    assert isinstance(await short, DeadlineExceededError)
    assert not middle.done()
    assert isinstance(await middle, DeadlineExceededError)
    assert not long.done()
    await channel.close()
    assert isinstance(await long, UnavailableError)
    await server.stop()


def test_own_user_is_the_peer_of_a_socket_pair():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert unix_server._peer_uid(ours) == unix_server.os.getuid()


async def test_an_endpoint_of_another_kind_is_a_configuration_error():
    with pytest.raises(ConfigurationError, match="unix:@"):
        UnixChannel("tcp://127.0.0.1:1")

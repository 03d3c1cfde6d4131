"""Whatever arrives on the socket, the server goes on serving."""

from __future__ import annotations

import random

import pytest
import zmq
import zmq.asyncio
from hypothesis import given
from hypothesis import strategies as st

from kvstore.core.errors import ProtocolError
from kvstore.testing.transport_conformance import SERVICE, double, match_number
from kvstore.transports.status import from_status
from kvstore.transports.zmq.channel import ZmqChannel
from kvstore.transports.zmq.frames import (
    MAX_MESSAGE_BYTES,
    Request,
    Response,
    parse_request,
    parse_response,
)
from kvstore.transports.zmq.server import ZmqServer

ID = b"12345678"


@pytest.fixture
async def server():
    server = ZmqServer(SERVICE, {"Match": double}, "tcp://127.0.0.1:0")
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
def raw(server):
    with zmq.asyncio.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.setsockopt(zmq.RCVTIMEO, 10_000)
        dealer.connect(server.endpoint)
        yield dealer


@pytest.mark.parametrize(
    ("frames", "status"),
    [
        ([ID], 13),
        ([ID, b"Match"], 13),
        ([ID, b"Match", b"123", b""], 13),
        ([ID, b"\xff\xfe", b"1234", b""], 13),
        ([ID, b"Match", b"1234", b"", b"one too many"], 13),
        ([ID, b"NoSuchMethod", b"1234", b""], 13),
        ([ID, b"Match", b"1234", b"\xff\xff\xff"], 13),
        ([ID, b"Match", b"1234", b""], 0),
    ],
)
async def test_a_malformed_request_with_an_id_is_answered(raw, frames, status):
    await raw.send_multipart(frames)
    request_id, code, payload = await raw.recv_multipart()
    assert (request_id, code) == (ID, bytes([status]))
    if status:
        assert isinstance(from_status(code[0], payload.decode()), ProtocolError)


async def test_a_deadline_of_zero_is_answered_all_the_same(raw):
    await raw.send_multipart([ID, b"Match", b"\0\0\0\0", b""])
    request_id, code, _ = await raw.recv_multipart()
    assert request_id == ID
    assert code[0] in (0, 4)


async def test_noise_is_counted_and_serving_goes_on(server, raw):
    seeded = random.Random(7)
    for _ in range(200):
        sizes = [seeded.choice([0, 1, 7, 9, 300]) for _ in range(seeded.randint(1, 6))]
        await raw.send_multipart([seeded.randbytes(size) for size in sizes])
    channel = ZmqChannel(server.endpoint)
    assert await match_number(channel, 3) == 6
    await raw.send_multipart([ID, b"Match", b"1234", b""])
    assert (await raw.recv_multipart())[0] == ID, "answers the noisy peer, too"
    assert server.num_malformed == 200
    await channel.close()


async def test_a_frame_over_the_limit_costs_only_its_sender_the_connection(server, raw):
    channel = ZmqChannel(server.endpoint)
    await raw.send_multipart([ID, b"Match", b"1234", bytes(MAX_MESSAGE_BYTES + 1)])
    assert await match_number(channel, 3) == 6
    await channel.close()


@given(st.lists(st.binary(max_size=12), max_size=6))
def test_parsing_frames_raises_nothing_but_protocol_errors(frames):
    for parse in (parse_request, parse_response):
        try:
            parsed = parse(frames)
        except ProtocolError:
            continue
        assert len(parsed.frames()) == len(frames)


@given(st.binary(min_size=8, max_size=8), st.text(max_size=20), st.binary(max_size=50))
def test_frames_round_trip(request_id, method, payload):
    request = Request(request_id, method, 1.5, payload)
    assert parse_request(request.frames()) == request
    response = Response(request_id, 3, payload)
    assert parse_response(response.frames()) == response

"""What only the ZeroMQ way has: frames from anybody, a window, memory lent until it is sent."""

from __future__ import annotations

import asyncio
import random
import threading

import pytest
import zmq
import zmq.asyncio

from kvstore.core.errors import (
    ConfigurationError,
    LeaseExpiredError,
    ReservationExpiredError,
    UnavailableError,
)
from kvstore.testing.bulk_remote import until
from kvstore.testing.transport_conformance import error_of
from kvstore.tiers.base import MissReason
from kvstore.transports.base import BulkRead, BulkWrite, Loan
from kvstore.transports.status import from_status
from kvstore.transports.zmq import bulk_link
from kvstore.transports.zmq.bulk_channel import ZmqBulkChannel
from kvstore.transports.zmq.bulk_frames import (
    PIECE_BYTES_MAX,
    Head,
    Kind,
    Piece,
    encode_head,
    parse_failure,
    parse_head,
)
from kvstore.transports.zmq.bulk_server import ZmqBulkServer

LONG_S = 20.0


class Shelf:
    """A `BulkStore` of one block."""

    def __init__(self, length: int = 1_000):
        self.block = bytearray(random.Random(length).randbytes(length))
        self.num_lent = 0
        self.gate = threading.Event()
        self.gate.set()
        self.landed = []

    def lend(self, session_id, lease_id, indices):
        assert self.gate.wait(LONG_S)
        if lease_id == 404:
            raise LeaseExpiredError("acquire again")
        self.num_lent += 1
        return Loan([memoryview(self.block) for _ in indices], self._give_back)

    def land(self, session_id, reservation_id, index, start_byte, data):
        assert self.gate.wait(LONG_S)
        if reservation_id == 404:
            raise ReservationExpiredError("reserve again")
        self.landed.append((index, start_byte, bytes(data)))

    def _give_back(self):
        self.num_lent -= 1


@pytest.fixture
def serve():
    servers = []

    def start(shelf):
        servers.append(ZmqBulkServer(shelf, "tcp://127.0.0.1:0"))
        servers[-1].start()
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
async def connect():
    channels = []

    def open_(endpoint):
        channels.append(ZmqBulkChannel(endpoint))
        return channels[-1]

    yield open_
    for channel in channels:
        await channel.close()


@pytest.fixture
def raw():
    with zmq.asyncio.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.setsockopt(zmq.RCVTIMEO, 10_000)
        yield dealer


def read_of(shelf, *, index=0):
    into = memoryview(bytearray(len(shelf.block)))
    from kvstore.core.checksum import checksum

    return BulkRead(index, into, checksum(shelf.block))


async def test_memory_is_lent_until_it_is_sent_and_then_given_back(serve, connect):
    shelf = Shelf(5 << 20)
    channel = connect(serve(shelf).endpoint)
    for _ in range(3):
        read = read_of(shelf)
        assert await channel.read(1, 1, [read], deadline_s=LONG_S) == [None]
        assert read.into == shelf.block
    await until(lambda: shelf.num_lent == 0)


async def test_memory_comes_back_from_a_reader_that_vanishes_or_never_reads(serve, raw):
    shelf = Shelf(24 << 20)
    server = serve(shelf)
    pieces = [Piece(0, i << 20, 1 << 20) for i in range(24)]
    raw.connect(server.endpoint)
    raw.setsockopt(zmq.RCVHWM, 1)
    await raw.send(encode_head(Head(Kind.READ, 1, pieces, 60_000)))
    await until(lambda: shelf.num_lent == 1)
    raw.close()
    await until(lambda: shelf.num_lent == 0)


async def test_memory_stays_lent_for_large_pieces_before_a_small_one(serve, raw):
    """Small frames are copied at once: they tell nothing of those before them."""
    shelf = Shelf(24 << 20)
    server = serve(shelf)
    raw.setsockopt(zmq.RCVHWM, 1)
    raw.connect(server.endpoint)
    pieces = [Piece(0, i << 20, 1 << 20) for i in range(23)]
    await raw.send(encode_head(Head(Kind.READ, 1, [*pieces, Piece(0, 23 << 20, 10)], 60_000)))
    await until(lambda: shelf.num_lent == 1)
    await asyncio.sleep(0.1)
    assert shelf.num_lent == 1, "the reader takes nothing, so most of it cannot be sent"
    raw.close()
    await until(lambda: shelf.num_lent == 0)


async def test_memory_comes_back_when_the_server_stops(serve, raw):
    shelf = Shelf(64 << 20)
    server = serve(shelf)
    raw.setsockopt(zmq.RCVHWM, 1)
    raw.connect(server.endpoint)
    pieces = [Piece(0, i << 20, 1 << 20) for i in range(64)]
    await raw.send(encode_head(Head(Kind.READ, 1, pieces, 60_000)))
    await until(lambda: shelf.num_lent == 1)
    await asyncio.to_thread(server.stop)
    assert shelf.num_lent == 0


async def test_noise_is_counted_and_serving_goes_on(serve, connect, raw):
    shelf = Shelf()
    server = serve(shelf)
    raw.connect(server.endpoint)
    seeded = random.Random(7)
    for _ in range(200):
        sizes = [seeded.choice([0, 1, 32, 48, 300]) for _ in range(seeded.randint(1, 6))]
        await raw.send_multipart([seeded.randbytes(size) for size in sizes])
    await raw.send_multipart([encode_head(Head(Kind.LANDED, 1))])  # no request
    channel = connect(server.endpoint)
    assert await channel.read(1, 1, [read_of(shelf)], deadline_s=LONG_S) == [None]
    await until(lambda: server.num_malformed == 201)


async def test_a_frame_over_the_limit_costs_only_its_sender_the_connection(serve, connect, raw):
    shelf = Shelf()
    server = serve(shelf)
    raw.connect(server.endpoint)
    events = raw.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    piece = Piece(0, 0, PIECE_BYTES_MAX)
    head = encode_head(Head(Kind.WRITE, 1, [piece]))
    await raw.send_multipart([head, bytes(PIECE_BYTES_MAX + 1)])
    async with asyncio.timeout(LONG_S):
        await events.recv_multipart()
    raw.disable_monitor()
    events.close()
    channel = connect(server.endpoint)
    assert await channel.read(1, 1, [read_of(shelf)], deadline_s=LONG_S) == [None]
    assert shelf.landed == []


async def test_an_error_of_the_store_is_the_answer(serve, raw):
    server = serve(Shelf())
    raw.connect(server.endpoint)
    for kind, error in ((Kind.READ, LeaseExpiredError), (Kind.WRITE, ReservationExpiredError)):
        head = Head(kind, 9, [Piece(0, 0, 5)], 10_000, 1, 404)
        await raw.send_multipart([encode_head(head), *([b"12345"] if kind is Kind.WRITE else [])])
        frames = [memoryview(frame) for frame in await raw.recv_multipart()]
        assert parse_head(frames) == Head(Kind.FAILED, 9, [])
        assert type(from_status(*parse_failure(frames[1]))) is error


async def test_bytes_in_flight_are_bounded_and_calls_take_turns(serve, connect):
    shelf = Shelf(40 << 20)
    shelf.gate.clear()
    channel = connect(serve(shelf).endpoint)
    large = asyncio.ensure_future(channel.read(1, 1, [read_of(shelf)], deadline_s=LONG_S))
    link = channel._link
    await until(lambda: link._asked_bytes >= bulk_link.WINDOW_BYTES)
    small = asyncio.ensure_future(
        channel.write(1, 1, [BulkWrite(0, memoryview(b"small"))], deadline_s=LONG_S)
    )
    await asyncio.sleep(0.05)
    assert link._asked_bytes <= bulk_link.WINDOW_BYTES + (8 << 20)
    shelf.gate.set()
    await small
    assert not large.done(), "the small call did not wait for the large one"
    assert await large == [None]
    assert (link._asked_bytes, link._asked) == (0, {})


async def test_a_read_that_waited_past_its_deadline_is_not_served(serve, connect):
    shelf = Shelf()
    shelf.gate.clear()
    server = serve(shelf)
    channel = connect(server.endpoint)
    read = read_of(shelf)
    assert await channel.read(1, 1, [read], deadline_s=0.1) == [MissReason.LATE]
    assert await channel.read(1, 1, [read], deadline_s=0.1) == [MissReason.LATE]
    shelf.gate.set()
    assert await channel.read(1, 1, [read_of(shelf)], deadline_s=LONG_S) == [None]
    assert not any(read.into), "answers of calls that are over go nowhere"


async def test_answers_that_nobody_asked_for_fail_the_call_and_hurt_nobody():
    """A node that lies: right request id, bytes of another block, bytes twice, an answer to a
    write."""
    context = zmq.asyncio.Context()
    router = context.socket(zmq.ROUTER)
    port = router.bind_to_random_port("tcp://127.0.0.1")
    channel = ZmqBulkChannel(f"tcp://127.0.0.1:{port}")
    lies = [
        (Head(Kind.DATA, 0, [Piece(5, 0, 100)]), [bytes(100)]),
        (Head(Kind.DATA, 0, [Piece(0, 50, 50)]), [bytes(50)]),
        (Head(Kind.DATA, 0, [Piece(0, 0, 101)]), [bytes(101)]),
        (Head(Kind.DATA, 0, [Piece(0, 0, 50), Piece(0, 0, 50)]), [bytes(50), bytes(50)]),
        (Head(Kind.LANDED, 0), []),
    ]
    try:
        for lie, data in lies:
            into = memoryview(bytearray(100))
            reading = asyncio.ensure_future(
                channel.read(1, 1, [BulkRead(0, into, 1)], deadline_s=LONG_S)
            )
            peer, frame = await router.recv_multipart()
            asked = parse_head([memoryview(frame)])
            head = Head(lie.kind, asked.request_id, lie.pieces)
            await router.send_multipart([peer, encode_head(head), *data])
            assert await reading == [MissReason.FAILED]
            assert channel._link._asked_bytes <= 0 or channel._link._asked
    finally:
        await channel.close()
        context.destroy(linger=0)


async def test_a_closed_channel_ends_its_calls(serve):
    shelf = Shelf()
    shelf.gate.clear()
    channel = ZmqBulkChannel(serve(shelf).endpoint)
    write = asyncio.ensure_future(
        error_of(channel.write(1, 1, [BulkWrite(0, memoryview(b"x"))], deadline_s=LONG_S))
    )
    await asyncio.sleep(0)
    await channel.close()
    await channel.close()
    assert type(await write) is UnavailableError
    late = channel.write(1, 1, [BulkWrite(0, memoryview(b"x"))], deadline_s=LONG_S)
    assert type(await error_of(late)) is UnavailableError
    shelf.gate.set()


async def test_addresses_that_cannot_be_used_are_configuration_errors(serve):
    server = serve(Shelf())
    assert server.port == int(server.endpoint.rpartition(":")[2])
    with pytest.raises(ConfigurationError, match="cannot listen on"):
        ZmqBulkServer(Shelf(), server.endpoint).start()
    with pytest.raises(ConfigurationError, match="cannot use endpoint"):
        ZmqBulkChannel("tcp://host")

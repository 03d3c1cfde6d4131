"""Whole messages, with and without frames that ZeroMQ reads from the caller's memory."""

import pytest
import zmq

from kvstore.transports.zmq.bulk_messages import receive, send

DEADLINE_MS = 10_000
LARGE = bytes(range(256)) * 1_024


@pytest.fixture
def pair():
    context = zmq.Context()
    ours, theirs = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    port = theirs.bind_to_random_port("tcp://127.0.0.1")
    ours.connect(f"tcp://127.0.0.1:{port}")  # who connects can queue messages at once
    yield ours, theirs
    context.destroy(linger=0)


@pytest.mark.parametrize("message", [[b"head"], [b"head", LARGE], [b"", LARGE, b"end", b""]])
def test_a_message_arrives_in_its_frames(pair, message):
    ours, theirs = pair
    send(ours, message)
    assert theirs.poll(DEADLINE_MS)
    assert [bytes(frame) for frame in receive(theirs)] == message


@pytest.mark.parametrize("message", [[b"head", LARGE], [b"head", LARGE, b"small end"]])
def test_lent_frames_are_tracked_until_they_are_sent(pair, message):
    ours, theirs = pair
    tracker = send(ours, message)
    assert tracker is not None
    assert theirs.poll(DEADLINE_MS)
    tracker.wait(DEADLINE_MS / 1000)


def test_what_was_copied_is_not_tracked(pair):
    ours, _ = pair
    assert send(ours, [b"head", b"small"]) is None


def test_receiving_where_nothing_came_raises(pair):
    _, theirs = pair
    with pytest.raises(zmq.Again):
        receive(theirs)


def test_one_message_at_a_time(pair):
    ours, theirs = pair
    send(ours, [b"a", b"b"])
    send(ours, [b"c"])
    assert theirs.poll(DEADLINE_MS)
    assert [bytes(frame) for frame in receive(theirs)] == [b"a", b"b"]
    assert theirs.poll(DEADLINE_MS)
    assert [bytes(frame) for frame in receive(theirs)] == [b"c"]

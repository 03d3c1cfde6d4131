"""Whatever arrives in bulk frames, parsing it gives a head or a ProtocolError."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.core.errors import ProtocolError
from kvstore.transports.zmq.bulk_frames import (
    FAILURE_BYTES_MAX,
    MESSAGE_BYTES_MAX,
    PIECE_BYTES_MAX,
    PIECES_MAX,
    READ_BYTES_MAX,
    Head,
    Kind,
    Piece,
    encode_failure,
    encode_head,
    parse_failure,
    parse_head,
    pieces_of,
)

U64 = st.integers(0, 2**64 - 1)
PIECES = st.lists(
    st.builds(Piece, st.integers(0, 2**32 - 1), st.integers(0, 2**40), st.integers(1, 3_000)),
    min_size=1,
    max_size=20,
)
HEADS = st.one_of(
    st.builds(Head, st.just(Kind.READ), U64, PIECES, st.integers(0, 2**32 - 1), U64, U64),
    st.builds(Head, st.sampled_from([Kind.WRITE, Kind.DATA]), U64, PIECES, st.just(0), U64, U64),
    st.builds(Head, st.just(Kind.LANDED), U64, st.just([])),
)


def frames_of(head: Head) -> list[memoryview]:
    data = head.pieces if head.kind in (Kind.WRITE, Kind.DATA) else []
    return [memoryview(f) for f in (encode_head(head), *(bytes(p.length_bytes) for p in data))]


@given(HEADS)
def test_heads_round_trip(head):
    assert parse_head(frames_of(head)) == head


@given(st.integers(0, 255), st.text(max_size=2 * FAILURE_BYTES_MAX))
def test_failures_round_trip_and_stay_short(status, message):
    frames = [memoryview(encode_head(Head(Kind.FAILED, 7))), None]
    frames[1] = memoryview(encode_failure(status, message))
    assert parse_head(frames) == Head(Kind.FAILED, 7, [])
    code, text = parse_failure(frames[1])
    assert code == status
    assert message.startswith(text.rstrip("\ufffd"))


@given(st.lists(st.binary(max_size=200), max_size=5))
def test_noise_is_a_protocol_error(frames):
    with pytest.raises(ProtocolError):
        parse_head([memoryview(frame) for frame in frames])


@given(HEADS, st.data())
def test_a_changed_message_is_a_head_or_a_protocol_error(head, data):
    frames = [bytearray(frame) for frame in frames_of(head)]
    victim = data.draw(st.sampled_from(frames))
    change = data.draw(st.sampled_from(["flip", "cut", "extend", "drop"]))
    if change == "drop":
        frames.remove(victim)
    elif change == "extend":
        victim += data.draw(st.binary(min_size=1, max_size=40))
    else:
        place = data.draw(st.integers(0, max(len(victim) - 1, 0)))
        if change == "cut":
            del victim[place:]
        else:
            victim[place] ^= 1 << data.draw(st.integers(0, 7))
    try:
        parsed = parse_head([memoryview(frame) for frame in frames])
    except ProtocolError:
        return
    lengths = [len(frame) for frame in frames[1:]]
    assert lengths in ([], [piece.length_bytes for piece in parsed.pieces]) or (
        parsed.kind is Kind.FAILED and len(lengths) == 1
    )


@pytest.mark.parametrize(
    "head",
    [
        Head(Kind.READ, 1, [Piece(0, 0, 0)]),
        Head(Kind.READ, 1, [Piece(0, 0, PIECE_BYTES_MAX + 1)]),
        Head(Kind.READ, 1, [Piece(0, 2**60, 1)]),
        Head(Kind.READ, 1, [Piece(0, 0, 1)] * (PIECES_MAX + 1)),
        Head(
            Kind.READ, 1, [Piece(0, 0, PIECE_BYTES_MAX)] * (READ_BYTES_MAX // PIECE_BYTES_MAX + 1)
        ),
        Head(Kind.READ, 1, []),
        Head(Kind.LANDED, 1, [Piece(0, 0, 1)]),
    ],
)
def test_what_is_beyond_the_limits_is_refused(head):
    with pytest.raises(ProtocolError):
        parse_head([memoryview(encode_head(head))])


def test_a_message_holds_no_more_than_one_piece_may():
    half = Piece(0, 0, MESSAGE_BYTES_MAX // 2 + 1)
    with pytest.raises(ProtocolError, match="in parts"):
        parse_head(frames_of(Head(Kind.WRITE, 1, [half, half])))


@given(st.integers(1, 2_000), st.integers(1, 500))
def test_pieces_cover_a_block_once_in_order(length, piece_bytes):
    end = 0
    for piece in pieces_of(3, length, piece_bytes):
        assert (piece.index, piece.start_byte) == (3, end)
        assert 1 <= piece.length_bytes <= piece_bytes
        end += piece.length_bytes
    assert end == length

from hypothesis import given
from hypothesis import strategies as st

from kvstore.core.ids import BlockHash, BlockKey, LayoutFingerprint
from kvstore.testing.tier_conformance import numbered_key
from kvstore.tiers.disk.record import Encoded, RecordHeader, decode_record_header, record_bytes

HEADERS = st.builds(
    RecordHeader,
    st.builds(
        BlockKey,
        st.binary(min_size=16, max_size=16).map(LayoutFingerprint),
        st.binary(min_size=32, max_size=32).map(BlockHash),
    ),
    st.integers(1, 1 << 40),
    st.integers(0, (1 << 32) - 1),
    st.integers(0, (1 << 64) - 1),
    st.integers(0, (1 << 64) - 1),
    st.none() | st.builds(Encoded, st.integers(1, 1 << 40), st.integers(0, (1 << 32) - 1)),
)


@given(HEADERS)
def test_round_trip(header: RecordHeader) -> None:
    encoded = header.encode()
    assert decode_record_header(encoded) == header
    assert decode_record_header(memoryview(encoded + bytes(4096 - len(encoded)))) == header
    assert len(encoded) < 128


@given(st.binary(max_size=200))
def test_any_bytes_are_no_header_rather_than_an_error(data: bytes) -> None:
    assert decode_record_header(data) is None


@given(HEADERS, st.data())
def test_any_flipped_bit_is_noticed(header: RecordHeader, data: st.DataObject) -> None:
    encoded = bytearray(header.encode())
    bit = data.draw(st.integers(0, 8 * len(encoded) - 1))
    encoded[bit // 8] ^= 1 << bit % 8
    assert decode_record_header(encoded) is None


@given(HEADERS, st.integers(0, 80))
def test_a_cut_header_is_none(header: RecordHeader, length: int) -> None:
    assert decode_record_header(header.encode()[:length]) is None


def test_absurd_lengths_are_damage() -> None:
    for length in (0, (1 << 40) + 1, (1 << 64) - 1):
        assert decode_record_header(RecordHeader(numbered_key(1), length, 0, 1, 2).encode()) is None
    for length in ((1 << 40) + 1, (1 << 64) - 1):
        header = RecordHeader(numbered_key(1), 1, 0, 1, 2, Encoded(length, 0))
        assert decode_record_header(header.encode()) is None


def test_sizes_on_disk() -> None:
    assert record_bytes(1) == record_bytes(4096) == 8192
    assert record_bytes(4097) == 12288
    assert RecordHeader(numbered_key(1), 9000, 0, 1, 2).record_bytes == 16384
    assert RecordHeader(numbered_key(1), 9000, 0, 1, 2, Encoded(4000, 7)).record_bytes == 8192


def test_golden_header() -> None:
    """The format on disk: changing it needs a new version."""
    header = RecordHeader(numbered_key(7), 12345, 0xDEADBEEF, 42, 9, Encoded(6789, 0xFEEDFACE))
    assert header.encode().hex() == (
        "4b565245434f524402000000746965722d636f6e666f726d616e6365"
        + "00" * 31
        + "07"
        + "3930000000000000"
        + "efbeadde"
        + "2a00000000000000"
        + "0900000000000000"
        + "851a000000000000"
        + "cefaedfe"
        + "b29f220a"
    )

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.core.checksum import checksum
from kvstore.core.ids import (
    BlockHash,
    BlockKey,
    BlockKeys,
    LayoutFingerprint,
    pack_hashes,
    routing_key,
    unpack_hashes,
)

LAYOUT = LayoutFingerprint(b"L" * 16)
HASHES = st.lists(st.binary(min_size=32, max_size=32).map(BlockHash), max_size=8)


@given(HASHES)
def test_pack_and_unpack(hashes: list[BlockHash]) -> None:
    packed = pack_hashes(hashes)
    assert len(packed) == 32 * len(hashes)
    assert unpack_hashes(packed) == hashes


@pytest.mark.parametrize("length", [1, 31, 33, 65])
def test_unpack_refuses_a_part_of_a_hash(length: int) -> None:
    with pytest.raises(ValueError, match=f"{length} bytes are no whole number"):
        unpack_hashes(bytes(length))


@given(HASHES, st.integers(0, 8), st.integers(0, 8))
def test_a_batch_of_keys(hashes: list[BlockHash], start: int, end: int) -> None:
    keys = BlockKeys(LAYOUT, hashes)
    assert len(keys) == len(hashes)
    assert list(keys) == [BlockKey(LAYOUT, h) for h in hashes]
    assert keys[start:end] == BlockKeys(LAYOUT, hashes[start:end])


def test_keys_of_two_layouts_differ() -> None:
    block_hash = BlockHash(bytes(32))
    other = LayoutFingerprint(b"M" * 16)
    assert len({BlockKey(LAYOUT, block_hash), BlockKey(other, block_hash)}) == 2


def test_the_routing_key_is_the_first_eight_bytes() -> None:
    assert routing_key(BlockHash(bytes([1, 2]) + bytes(30))) == 0x0201
    assert routing_key(BlockHash(b"\xff" * 8 + bytes(24))) == (1 << 64) - 1
    assert routing_key(BlockHash(bytes(8) + b"\xff" * 24)) == 0


def test_checksum_is_crc32c() -> None:
    """The check value of the CRC catalogue."""
    assert checksum(b"123456789") == 0xE3069283
    assert checksum(memoryview(bytearray(b"123456789"))) == 0xE3069283
    assert checksum(b"") == 0


def test_checksum_of_large_data_is_the_same() -> None:
    """Above 32 KiB the GIL is released."""
    assert checksum(bytes(1 << 20)) == 0x14298C12

"""Copying with a checksum in one pass."""

from __future__ import annotations

import random

import pytest

from kvstore.core.checksum import checksum
from kvstore.tiers.memory import CACHED_BYTES, SMALL_BYTES, copy_with_checksum

LENGTHS = [
    0,
    1,
    7,
    4096,
    SMALL_BYTES,
    SMALL_BYTES + 1,
    CACHED_BYTES - 1,
    CACHED_BYTES,
    CACHED_BYTES + 1,
    3 * CACHED_BYTES + 5,
]


@pytest.mark.parametrize("length", LENGTHS)
def test_copies_all_bytes_and_returns_their_checksum(length: int) -> None:
    data = random.Random(length).randbytes(length)
    into = bytearray(length)
    crc = copy_with_checksum(memoryview(into), memoryview(data))
    assert bytes(into) == data
    assert crc == checksum(data)


def test_known_value() -> None:
    into = bytearray(9)
    assert copy_with_checksum(memoryview(into), memoryview(b"123456789")) == 0xE3069283


def test_views_of_other_item_sizes_are_bytes_all_the_same() -> None:
    data = bytes(range(64))
    into = bytearray(64)
    assert copy_with_checksum(memoryview(into).cast("I"), memoryview(data)) == checksum(data)
    assert bytes(into) == data


def test_bytes_beside_the_target_are_left_alone() -> None:
    into = bytearray(b"\xaa" * (CACHED_BYTES + 10))
    copy_with_checksum(memoryview(into)[5:-5], memoryview(bytes(CACHED_BYTES)))
    assert into[:5] == into[-5:] == b"\xaa" * 5


def test_lengths_must_agree() -> None:
    with pytest.raises(AssertionError):
        copy_with_checksum(memoryview(bytearray(3)), memoryview(b"1234"))

"""Every kind of damage at every kind of place in a record: a miss, never a wrong byte.

header fields │ header padding │ payload, in units of 4 KiB │ payload padding
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from kvstore.core.checksum import checksum
from kvstore.testing.tier_conformance import load_one, numbered_block, numbered_key
from kvstore.tiers.base import Block, MissReason
from kvstore.tiers.disk.record import RecordHeader
from kvstore.tiers.disk.tier import DiskTier

CAPACITY = 8 << 20
UNIT = 4096
LENGTH = 2 * UNIT + 1000
RECORD = 4 * UNIT
FIELDS = {
    "magic": (0, 8),
    "version": (8, 12),
    "layout": (12, 28),
    "hash": (28, 60),
    "length": (60, 68),
    "checksum": (68, 72),
    "sequence": (72, 80),
    "segment": (80, 88),
    "encoded length": (88, 96),
    "encoded checksum": (96, 100),
    "header checksum": (100, 104),
}
HEADER_END = 104
PAYLOAD_END = UNIT + LENGTH


def make(folder: Path, count: int = 3) -> tuple[Path, bytes]:
    """A file of `count` records, each in a batch of its own; and what is in it."""
    with closing(DiskTier(folder, CAPACITY)) as tier:
        for number in range(count):
            tier.store([numbered_block(number, LENGTH)])
    (path,) = folder.glob("segment-*")
    content = path.read_bytes()
    assert len(content) == count * RECORD
    return path, content


def check(folder: Path, *, damaged: set[int], count: int = 3) -> None:
    """After a restart: the damaged records are misses and counted, the others right or, where they
    come after a bad header, not there."""
    with closing(DiskTier(folder, CAPACITY)) as tier:
        for number in range(count):
            block = numbered_block(number, LENGTH)
            reason, data = load_one(tier, block)
            if number in damaged:
                assert reason is not None
            else:
                assert data == block.data or reason is MissReason.NEVER_STORED
        assert tier.statistics().corruptions > 0


def check_live(tier: DiskTier, *, damaged: set[int], count: int = 3) -> None:
    """While the tier runs, damage of one record touches no other."""
    for number in range(count):
        block = numbered_block(number, LENGTH)
        reason, data = load_one(tier, block)
        assert (reason is MissReason.CORRUPT) == (number in damaged)
        assert reason is not None or data == block.data
    assert tier.statistics().corruptions == len(damaged)
    assert tier.statistics().blocks == count - len(damaged)


def test_the_fields_are_where_this_test_thinks() -> None:
    block = numbered_block(1, LENGTH)
    encoded = RecordHeader(block.key, LENGTH, block.checksum, 1, 2).encode()
    assert len(encoded) == HEADER_END
    assert [start for start, _ in FIELDS.values()][1:] == [end for _, end in FIELDS.values()][:-1]


def field_places() -> Iterator[int]:
    for start, end in FIELDS.values():
        yield from range(start, end)


def payload_places() -> Iterator[int]:
    """First and last byte of the payload and of every unit, and some between."""
    for start in range(UNIT, PAYLOAD_END, UNIT):
        yield from (start, start + 1, min(start + UNIT, PAYLOAD_END) - 1)
    yield from random.Random(7).sample(range(UNIT, PAYLOAD_END), 60)


@pytest.mark.parametrize("record", [0, 1, 2])
def test_a_flipped_bit_in_any_byte_of_the_header_or_payload(tmp_path: Path, record: int) -> None:
    path, clean = make(tmp_path)
    rng = random.Random(record)
    for place in [*field_places(), *payload_places()]:
        content = bytearray(clean)
        content[record * RECORD + place] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        check(tmp_path, damaged={record})


@pytest.mark.parametrize("bit", range(8))
def test_a_flipped_bit_found_while_the_tier_runs(tmp_path: Path, bit: int) -> None:
    places = [*field_places(), *payload_places()][bit::8]
    for i, place in enumerate(places):
        folder = tmp_path / str(i)
        with closing(DiskTier(folder, CAPACITY)) as tier:
            tier.store([numbered_block(number, LENGTH) for number in range(3)])
            (path,) = folder.glob("segment-*")
            flip(path, RECORD + place, bit)
            check_live(tier, damaged={1})


def flip(path: Path, offset: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1 << bit]))


@pytest.mark.parametrize("place", [HEADER_END, UNIT - 1, PAYLOAD_END, RECORD - 1])
def test_padding_is_nobodys(tmp_path: Path, place: int) -> None:
    """What is not part of a block cannot make it wrong."""
    path, clean = make(tmp_path)
    content = bytearray(clean)
    content[RECORD + place] ^= 0xFF
    path.write_bytes(content)
    with closing(DiskTier(tmp_path, CAPACITY)) as tier:
        for number in range(3):
            block = numbered_block(number, LENGTH)
            assert load_one(tier, block) == (None, bytes(block.data))


@pytest.mark.parametrize("units", [1, 2, 3])
@pytest.mark.parametrize("old", ["zeros", "other record", "other block's bytes"])
def test_a_torn_record(tmp_path: Path, units: int, old: str) -> None:
    """Only its first units reached the disk; behind them is what was there before."""
    path, clean = make(tmp_path)
    before = {
        "zeros": bytes(RECORD),
        "other record": clean[:RECORD],
        "other block's bytes": random.Random(1).randbytes(RECORD),
    }[old]
    torn = 2 * RECORD + units * UNIT
    path.write_bytes(clean[:torn] + before[units * UNIT :])
    check(tmp_path, damaged={2})


@pytest.mark.parametrize("end", [1, HEADER_END, UNIT, UNIT + 1, PAYLOAD_END, RECORD - 1])
def test_a_short_record(tmp_path: Path, end: int) -> None:
    path, clean = make(tmp_path)
    path.write_bytes(clean[: 2 * RECORD + end])
    check(tmp_path, damaged={2})


def swap_records(content: bytes) -> bytes:
    return content[:RECORD] + content[2 * RECORD :] + content[RECORD : 2 * RECORD]


def same_record_twice(content: bytes) -> bytes:
    return content[:RECORD] + content[:RECORD] + content[2 * RECORD :]


def swap_headers(content: bytes) -> bytes:
    first, second = content[RECORD : RECORD + UNIT], content[2 * RECORD : 2 * RECORD + UNIT]
    return (
        content[:RECORD] + second + content[RECORD + UNIT : 2 * RECORD] + first
        + content[2 * RECORD + UNIT :]
    )  # fmt: skip


def one_unit_later(content: bytes) -> bytes:
    return content[:RECORD] + bytes(UNIT) + content[RECORD:-UNIT]


@pytest.mark.parametrize(
    ("misdirect", "damaged"),
    [
        (swap_records, {1, 2}),
        (same_record_twice, {1}),
        (swap_headers, {1, 2}),
        (one_unit_later, {1, 2}),
    ],
)
def test_misdirected_writes_found_while_the_tier_runs(
    tmp_path: Path, misdirect: Callable[[bytes], bytes], damaged: set[int]
) -> None:
    """Whole records at wrong places: their checksums agree, their keys tell."""
    with closing(DiskTier(tmp_path, CAPACITY)) as tier:
        tier.store([numbered_block(number, LENGTH) for number in range(3)])
        (path,) = tmp_path.glob("segment-*")
        content = misdirect(path.read_bytes())
        with path.open("r+b") as file:
            file.write(content)
        check_live(tier, damaged=damaged)


def test_misdirected_records_found_after_a_restart_are_what_their_headers_say(
    tmp_path: Path,
) -> None:
    path, clean = make(tmp_path)
    path.write_bytes(swap_records(clean))
    with closing(DiskTier(tmp_path, CAPACITY)) as tier:
        for number in range(3):
            block = numbered_block(number, LENGTH)
            assert load_one(tier, block) == (None, bytes(block.data))
    path.write_bytes(swap_headers(clean))
    check(tmp_path, damaged={1, 2})


def test_a_payload_that_looks_like_records_is_not_taken_for_them(tmp_path: Path) -> None:
    """Whoever can store bytes could store a forged record; damage before it must not uncover it."""
    victim = numbered_block(9, 100)
    forged = RecordHeader(victim.key, 4, 0x12345678, 10**6, 1).encode().ljust(UNIT, b"\0")
    evil = memoryview(forged + b"evil".ljust(UNIT, b"\0"))
    with closing(DiskTier(tmp_path, CAPACITY)) as tier:
        tier.store([numbered_block(0, LENGTH)])
        tier.store([Block(numbered_key(1), evil, checksum(evil))])
    (path,) = tmp_path.glob("segment-*")
    content = bytearray(path.read_bytes())
    del content[RECORD : RECORD + UNIT]  # its header is gone: the payload is where it was
    path.write_bytes(content)
    with closing(DiskTier(tmp_path, CAPACITY)) as tier:
        assert victim.key not in tier
        block = numbered_block(0, LENGTH)
        assert load_one(tier, block) == (None, bytes(block.data))

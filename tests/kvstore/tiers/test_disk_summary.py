"""A restart that reads summaries finds what one that walks the headers finds."""

import random
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.core.ids import BlockKey
from kvstore.testing.tier_conformance import load_one, numbered_block, numbered_key
from kvstore.tiers.disk.record import Encoded, RecordHeader
from kvstore.tiers.disk.segment import Segment
from kvstore.tiers.disk.summary import (
    RECORDS_MIN,
    decode_summary,
    encode_summary,
    pack_row,
    summary_bytes,
)
from kvstore.tiers.disk.tier import DiskTier

CAPACITY = 16 << 20
"""Eight segments of 2 MiB: 256 records of 8 KiB each."""
COUNT = 600
"""Two complete segments, and one that is written on."""


def fill(folder: Path, count: int = COUNT, start: int = 0) -> DiskTier:
    tier = DiskTier(folder, CAPACITY)
    blocks = [numbered_block(number, 1000) for number in range(start, start + count)]
    assert len(tier.store(blocks).stored) == count
    return tier


def summaries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.summary"))


def keys(*numbers: int) -> list[BlockKey]:
    return [numbered_key(number) for number in numbers]


def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Offsets of the headers that are walked from now on; the first of a segment is always read, to
    see whose summary lies beside it."""
    seen: list[int] = []
    read = Segment.read

    def spy(segment: Segment, buffers: list[memoryview], offset: int) -> int:
        if offset:
            seen.append(offset)
        return read(segment, buffers, offset)

    monkeypatch.setattr(Segment, "read", spy)
    return seen


def test_a_restart_reads_summaries_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tier = fill(tmp_path)
    before, used_bytes = tier.inventory(), tier.statistics().used_bytes
    tier.close()
    assert len(summaries(tmp_path)) == 2, "the third has too few records"
    walked = reads(monkeypatch)
    again = DiskTier(tmp_path, CAPACITY)
    assert again.inventory() == before
    assert again.statistics().used_bytes == used_bytes
    ends_of_segments = 3
    assert len(walked) <= COUNT - 2 * 256 + ends_of_segments
    assert load_one(again, numbered_block(3, 1000))[0] is None
    again.close()


def test_without_summaries_the_headers_say_the_same(tmp_path: Path) -> None:
    tier = fill(tmp_path)
    before, sequence = tier.inventory(), tier.durable_sequence
    tier.close()
    for path in summaries(tmp_path):
        path.unlink()
    again = DiskTier(tmp_path, CAPACITY)
    assert (again.inventory(), again.durable_sequence) == (before, sequence)
    again.close()


def test_a_segment_that_is_written_on_is_walked_from_where_its_summary_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, 150).close()
    assert len(summaries(tmp_path)) == 1
    crashed = fill(tmp_path, 20, start=150)
    before = crashed.inventory()
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in [*tmp_path.glob("segment-*")]:
        shutil.copy(path, copy)
    crashed.close()
    walked = reads(monkeypatch)
    again = DiskTier(copy, CAPACITY)
    assert again.inventory() == before
    assert len(walked) <= 21
    again.close()
    assert [p.stat().st_size for p in summaries(copy)] == [summary_bytes(170)]


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "foreign"])
def test_a_bad_summary_is_passed_over(tmp_path: Path, damage: str) -> None:
    tier = fill(tmp_path)
    before = tier.inventory()
    tier.close()
    first, second = summaries(tmp_path)
    content = bytearray(first.read_bytes())
    match damage:
        case "flip":
            content[random.Random(1).randrange(len(content))] ^= 4
        case "cut":
            del content[-1000:]
        case "empty":
            content.clear()
        case "foreign":
            content = bytearray(second.read_bytes())
    first.write_bytes(content)
    again = DiskTier(tmp_path, CAPACITY)
    assert again.inventory() == before
    assert again.statistics().corruptions == 0
    again.close()


def test_summaries_count_and_leave_with_their_segments(tmp_path: Path) -> None:
    tier = DiskTier(tmp_path, CAPACITY)
    for start in range(0, 4000, 100):
        tier.store([numbered_block(number, 1000) for number in range(start, start + 100)])
        statistics = tier.statistics()
        sizes = [path.stat().st_size for path in tmp_path.iterdir()]
        assert statistics.used_bytes <= sum(sizes) <= CAPACITY
    numbers = {path.stem for path in tmp_path.glob("segment-*.kv")}
    assert {path.stem for path in summaries(tmp_path)} <= numbers
    assert len(summaries(tmp_path)) >= 4, "a full tier has them too"
    before = tier.inventory()
    tier.close()
    again = DiskTier(tmp_path, CAPACITY)
    assert again.inventory() == before
    again.close()


HEADERS = st.lists(
    st.builds(
        RecordHeader,
        key=st.integers(0, 2**64).map(numbered_key),
        length_bytes=st.integers(1, 1 << 20),
        checksum=st.integers(0, 2**32 - 1),
        sequence=st.integers(0, 2**64 - 1),
        segment_id=st.just(7),
        encoded=st.none() | st.builds(Encoded, st.integers(1, 1 << 20), st.integers(0, 2**32 - 1)),
    ),
    min_size=1,
    max_size=5,
)


@given(HEADERS)
def test_round_trip(headers: list[RecordHeader]) -> None:
    rows, end = bytearray(), 0
    for header in headers:
        rows += pack_row(end, header)
        end += header.record_bytes
    summary = decode_summary(encode_summary(7, end, rows))
    assert summary is not None
    assert (summary.segment_id, summary.end, len(summary.rows)) == (7, end, len(headers))
    assert [int(n) for n in summary.rows["sequence"]] == [h.sequence for h in headers]
    assert summary.rows["hash"].tolist() == [h.key.hash for h in headers]
    assert decode_summary(encode_summary(7, end + 4096, rows)) is None, "does not add up"


@given(st.binary(max_size=500))
def test_any_bytes_are_taken(data: bytes) -> None:
    assert decode_summary(data) is None


def test_small_segments_have_none() -> None:
    assert summary_bytes(RECORDS_MIN - 1) == 0
    assert summary_bytes(RECORDS_MIN) > 88 * RECORDS_MIN

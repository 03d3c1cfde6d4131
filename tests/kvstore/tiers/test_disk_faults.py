"""Disks that fill up, fail, lie or lose power: data or a miss, never a wrong byte, never an
exception."""

import errno
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.core.ids import BlockKey
from kvstore.testing.tier_conformance import (
    inventory_keys,
    load_one,
    numbered_block,
    numbered_key,
)
from kvstore.tiers.base import Block, MissReason
from kvstore.tiers.disk.tier import DiskTier

CAPACITY = 8 << 20
BLOCK = 10_000
RECORD = 4096 + 12288

_WRITER = """
import random, sys
from pathlib import Path
from kvstore.testing.tier_conformance import numbered_block
from kvstore.tiers.disk.tier import DiskTier
rng = random.Random(int(sys.argv[2]))
tier = DiskTier(Path(sys.argv[1]), 2 << 20)
number = 0
for _ in sys.stdin:
    numbers = range(number, number + rng.randint(1, 6))
    batch = [numbered_block(n, 1 + n * 7919 % 60_000) for n in numbers]
    result = tier.store(batch)
    number += len(batch)
    gone = [int.from_bytes(key.hash, "big") for key in result.evicted]
    print(number, *gone, flush=True)
"""


def long_block(number: int) -> Block:
    """As the writer makes them."""
    return numbered_block(number, 1 + number * 7919 % 60_000)


@pytest.fixture
def tier(tmp_path: Path) -> Iterator[DiskTier]:
    tier = DiskTier(tmp_path, CAPACITY)
    yield tier
    tier.close()


def put(tier: DiskTier, *numbers: int) -> list[BlockKey]:
    """Returns what was stored."""
    return list(tier.store([numbered_block(number, BLOCK) for number in numbers]).stored)


def keys(*numbers: int) -> list[BlockKey]:
    return [numbered_key(number) for number in numbers]


def only_segment(folder: Path) -> Path:
    (path,) = folder.glob("segment-*")
    return path


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.mark.parametrize("seed", range(12))
def test_a_killed_writer_loses_nothing_it_was_told_is_stored(tmp_path: Path, seed: int) -> None:
    """Killed at a random moment of one store, after a random number of others."""
    rng = random.Random(seed)
    stored, present = 0, set[int]()
    command = [sys.executable, "-c", _WRITER, str(tmp_path), str(seed)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, bufsize=1) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for _ in range(rng.randint(1, 40)):
            process.stdin.write("store\n")
            end, *gone = map(int, process.stdout.readline().split())
            present = (present | set(range(stored, end))) - set(gone)
            stored = end
        process.stdin.write("store\n")
        time.sleep(rng.uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
    tier = DiskTier(tmp_path, 2 << 20)
    found = {int.from_bytes(key.hash, "big") for key in inventory_keys(tier)}
    gone_unheard = present - found
    assert all(number < min(found) for number in gone_unheard), "only the oldest were evicted"
    assert sum(long_block(number).data.nbytes for number in gone_unheard) <= 4 * (256 << 10)
    for number in found:
        block = long_block(number)
        assert load_one(tier, block) == (None, bytes(block.data))
    assert tier.statistics().corruptions <= 1, "at most the tail was torn"
    assert sum(path.stat().st_size for path in tmp_path.glob("segment-*")) <= 2 << 20
    assert put(tier, 10**6) == keys(10**6)
    tier.close()


@given(offset=st.integers(0, 4 * RECORD - 1), bit=st.integers(0, 7))
@settings(max_examples=60, deadline=None)
def test_a_flipped_bit_never_gives_a_wrong_byte(
    tmp_path_factory: pytest.TempPathFactory, offset: int, bit: int
) -> None:
    """Anywhere in the file, found while the tier runs or after a restart."""
    folder = tmp_path_factory.mktemp("flip")
    tier = DiskTier(folder, CAPACITY)
    put(tier, 0, 1, 2, 3)
    path = only_segment(folder)
    byte = path.read_bytes()[offset] ^ 1 << bit
    overwrite(path, offset, bytes([byte]))
    check_all_right_but(tier, offset // RECORD)
    tier.close()
    tier = DiskTier(folder, CAPACITY)
    found = inventory_keys(tier)
    assert found in (keys(0, 1, 2, 3), keys(*range(offset // RECORD)))
    check_all_right_but(tier, offset // RECORD)
    tier.close()
    shutil.rmtree(folder)


def check_all_right_but(tier: DiskTier, damaged: int) -> None:
    for number in range(4):
        block = numbered_block(number, BLOCK)
        if block.key in tier:
            reason, data = load_one(tier, block)
            assert (reason, data) == (None, bytes(block.data)) or number == damaged
            assert reason in (None, MissReason.CORRUPT)
            assert data == block.data or reason is MissReason.CORRUPT


def test_a_bad_header_gives_up_the_rest_of_its_segment_only(tmp_path: Path) -> None:
    tier = DiskTier(tmp_path, CAPACITY, segment_bytes=4 * RECORD)
    put(tier, *range(12))
    tier.close()
    overwrite(tmp_path / "segment-0000000001.kv", RECORD, bytes(4096))
    tier = DiskTier(tmp_path, CAPACITY, segment_bytes=4 * RECORD)
    assert inventory_keys(tier) == keys(0, 1, 2, 3, 4, 8, 9, 10, 11)
    assert tier.statistics().corruptions == 1
    assert tier.statistics().used_bytes == 12 * RECORD, "its bytes count all the same"
    assert put(tier, 5, 6, 7) == keys(5, 6, 7)
    tier.close()


@pytest.mark.parametrize("cut", [1, 4096, 12287, 12288, 12289, RECORD - 1, RECORD, RECORD + 5000])
def test_a_cut_file_loses_its_tail(tmp_path: Path, cut: int) -> None:
    tier = DiskTier(tmp_path, CAPACITY)
    put(tier, 0, 1, 2)
    os.truncate(only_segment(tmp_path), 3 * RECORD - cut)
    lost = [2] if cut <= RECORD else [1, 2]
    for number in range(3):
        block = numbered_block(number, BLOCK)
        expected = MissReason.CORRUPT if number in lost else None
        assert load_one(tier, block)[0] == expected
    tier.close()
    tier = DiskTier(tmp_path, CAPACITY)
    assert inventory_keys(tier) == keys(*range(3 - len(lost)))
    assert tier.statistics().corruptions == (0 if cut == RECORD else 1)
    assert put(tier, *lost, 9) == keys(*lost, 9)
    tier.close()
    tier = DiskTier(tmp_path, CAPACITY)
    assert sorted(int.from_bytes(k.hash, "big") for k in inventory_keys(tier)) == [0, 1, 2, 9]
    tier.close()


def test_an_empty_file_is_no_damage(tmp_path: Path) -> None:
    (tmp_path / "segment-0000000003.kv").touch()
    (tmp_path / "somebody's notes.txt").write_text("keep")
    tier = DiskTier(tmp_path, CAPACITY)
    assert tier.statistics().corruptions == 0
    assert put(tier, 1) == keys(1)
    tier.close()
    assert (tmp_path / "somebody's notes.txt").read_text() == "keep"
    tier = DiskTier(tmp_path, CAPACITY)
    assert inventory_keys(tier) == keys(1)
    tier.close()


def test_a_read_that_lands_in_another_record_is_noticed(tier: DiskTier) -> None:
    """Header and payload of the other record agree: only the key tells."""
    put(tier, 0, 1)
    path = only_segment(tier.folder)
    overwrite(path, 0, path.read_bytes()[RECORD:])
    assert load_one(tier, numbered_block(0, BLOCK))[0] is MissReason.CORRUPT
    other = numbered_block(1, BLOCK)
    assert load_one(tier, other) == (None, bytes(other.data))
    assert tier.statistics().corruptions == 1


def test_a_read_error_is_a_miss_and_passes(tier: DiskTier, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tier, 0, 1)
    blocks = [numbered_block(number, BLOCK) for number in (0, 1)]
    into = [memoryview(bytearray(BLOCK)) for _ in blocks]
    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", fail_with(errno.EIO))
        assert tier.load(keys(0, 1), into) == [MissReason.FAILED] * 2
        assert tier.statistics().errors == 2
    assert tier.load(keys(0, 1), into) == [None, None]
    assert into == [block.data for block in blocks]


def fail_with(number: int):
    def fail(*_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number))

    return fail


def test_a_full_disk_leaves_blocks_out(tier: DiskTier, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tier, 0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", fail_with(errno.ENOSPC))
        assert put(tier, 1, 2) == []
    assert tier.statistics().errors == 2
    assert inventory_keys(tier) == keys(0)
    assert put(tier, 1, 2) == keys(1, 2)
    assert only_segment(tier.folder).stat().st_size == tier.statistics().used_bytes == 3 * RECORD


def test_a_real_limit_of_file_size_leaves_blocks_out(tmp_path: Path) -> None:
    """The first run of the batch goes in, the second meets the limit in the middle of a write."""
    tier = DiskTier(tmp_path, CAPACITY)
    put(tier, *range(3))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 * RECORD, hard))
    try:
        assert put(tier, 10, 11, 12) == []
        assert put(tier, 20) == keys(20)
        assert put(tier, 21) == []
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert tier.statistics().errors == 4
    assert put(tier, 10) == keys(10)
    for number in (0, 1, 2, 20, 10):
        block = numbered_block(number, BLOCK)
        assert load_one(tier, block) == (None, bytes(block.data))
    tier.close()
    tier = DiskTier(tmp_path, CAPACITY)
    assert inventory_keys(tier) == keys(0, 1, 2, 20, 10)
    assert tier.statistics().corruptions == 0
    tier.close()


def test_writes_and_reads_that_stop_half_way_go_on(
    tier: DiskTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, read = os.pwritev, os.preadv

    def write_some(file: int, buffers: Sequence[memoryview], offset: int) -> int:
        return write(file, [memoryview(buffers[0])[:8192]], offset)

    def read_some(file: int, buffers: Sequence[memoryview], offset: int) -> int:
        return read(file, [memoryview(buffers[0])[:4096]], offset)

    monkeypatch.setattr(os, "pwritev", write_some)
    monkeypatch.setattr(os, "preadv", read_some)
    assert put(tier, 0, 1, 2) == keys(0, 1, 2)
    for number in range(3):
        block = numbered_block(number, BLOCK)
        assert load_one(tier, block) == (None, bytes(block.data))


def test_blocks_that_could_not_be_made_durable_are_left_out(
    tier: DiskTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tier, 0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail_with(errno.EIO))
        assert put(tier, 1) == []
        assert tier.durable_sequence == 1
    assert tier.statistics().errors == 1
    assert put(tier, 1, 2) == keys(1, 2)
    assert tier.durable_sequence == 4


def test_a_full_disk_while_carrying_blocks_forward_evicts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = DiskTier(tmp_path, 16 * RECORD, segment_bytes=4 * RECORD)
    put(tier, *range(12))
    load_one(tier, numbered_block(0, BLOCK))
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", fail_with(errno.ENOSPC))
        result = tier.store([numbered_block(12, BLOCK)])
    assert list(result.stored) == []
    assert list(result.evicted) == keys(0, 1, 2, 3)
    assert inventory_keys(tier) == keys(*range(4, 12))
    assert put(tier, 12) == keys(12)
    tier.close()


def test_a_damaged_block_is_not_carried_forward(tmp_path: Path) -> None:
    tier = DiskTier(tmp_path, 16 * RECORD, segment_bytes=4 * RECORD)
    put(tier, *range(12))
    for number in (0, 1):
        load_one(tier, numbered_block(number, BLOCK))
    overwrite(tmp_path / "segment-0000000000.kv", 5000, b"damage")
    result = tier.store([numbered_block(12, BLOCK)])
    assert set(result.evicted) == set(keys(0, 2, 3))
    assert tier.statistics().corruptions == 1
    block = numbered_block(1, BLOCK)
    assert load_one(tier, block) == (None, bytes(block.data))
    tier.close()


def test_a_file_that_cannot_be_used_again_keeps_its_bytes_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = DiskTier(tmp_path, 16 * RECORD, segment_bytes=4 * RECORD)
    put(tier, *range(12))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fail_with(errno.EROFS))
        assert put(tier, 12) == []
        assert put(tier, 12) == []
        assert tier.statistics().used_bytes == 12 * RECORD == bytes_in(tmp_path)
    assert put(tier, 12) == keys(12)
    assert tier.statistics().used_bytes == 12 * RECORD == bytes_in(tmp_path)
    tier.close()
    assert bytes_in(tmp_path) == 9 * RECORD


def test_a_file_that_cannot_be_removed_keeps_its_bytes_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = DiskTier(tmp_path, 16 * RECORD, segment_bytes=4 * RECORD)
    put(tier, *range(12))
    oldest = tier._log.segments[0]
    oldest.hold()  # by a slow reader: its file cannot be written over
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", fail_with(errno.EROFS))
        assert put(tier, 12) == []
        assert tier.statistics().used_bytes == 12 * RECORD == bytes_in(tmp_path)
    assert put(tier, 12) == keys(12)
    assert tier.statistics().used_bytes == 9 * RECORD == bytes_in(tmp_path)
    oldest.let_go()
    tier.close()


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("segment-*"))


def test_a_crash_over_an_earlier_use_of_a_file_finds_the_new_records_only(tmp_path: Path) -> None:
    """Records of one length, so that old headers lie where the next new ones would."""
    tier = DiskTier(tmp_path, 16 * RECORD, segment_bytes=4 * RECORD)
    put(tier, *range(12))
    put(tier, 12, 13)
    crashed = tmp_path / "crashed"
    shutil.copytree(tmp_path, crashed, ignore=shutil.ignore_patterns("lock"))
    tier.close()
    tier = DiskTier(crashed, 16 * RECORD, segment_bytes=4 * RECORD)
    assert inventory_keys(tier) == keys(*range(4, 14))
    for number in range(4, 14):
        block = numbered_block(number, BLOCK)
        assert load_one(tier, block) == (None, bytes(block.data))
    assert put(tier, 20, 21, 22, 23) == keys(20, 21, 22, 23)
    assert tier.statistics().used_bytes <= tier.capacity_bytes
    tier.close()

import os
import random
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvstore.core.checksum import checksum
from kvstore.core.errors import ConfigurationError
from kvstore.core.ids import BlockKey
from kvstore.testing.tier_conformance import (
    inventory_keys,
    load_one,
    numbered_block,
    numbered_key,
)
from kvstore.tiers.base import Block
from kvstore.tiers.disk.tier import DiskTier, default_segment_bytes
from kvstore.tiers.memory import aligned_buffer

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
BLOCK = 12 << 10
RECORD = 16 << 10
CAPACITY = 512 << 10
SEGMENT = 64 << 10
"""An eighth: four records."""


def open_tier(folder: Path, capacity: int = CAPACITY) -> DiskTier:
    return DiskTier(folder, capacity)


@pytest.fixture
def tier(tmp_path: Path) -> Iterator[DiskTier]:
    tier = open_tier(tmp_path)
    yield tier
    tier.close()


def put(tier: DiskTier, *numbers: int) -> list[BlockKey]:
    """Returns what was evicted."""
    result = tier.store([numbered_block(number, BLOCK) for number in numbers])
    assert list(result.stored) == [numbered_key(number) for number in numbers]
    return list(result.evicted)


def numbers(keys: list[BlockKey]) -> list[int]:
    return [int.from_bytes(key.hash, "big") for key in keys]


def bytes_on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("segment-*"))


def test_a_restart_comes_back_warm(tmp_path: Path) -> None:
    first = open_tier(tmp_path)
    for start in range(0, 20, 5):
        put(first, *range(start, start + 5))
    before, sequence = first.inventory(), first.durable_sequence
    first.close()
    second = open_tier(tmp_path)
    assert second.inventory() == before
    assert second.durable_sequence == sequence == 20
    assert second.statistics().used_bytes == 20 * RECORD
    for number in range(20):
        block = numbered_block(number, BLOCK)
        assert load_one(second, block) == (None, bytes(block.data))
    put(second, 100)
    assert second.durable_sequence == sequence + 1
    second.close()


def test_restarts_do_not_pile_up_files(tmp_path: Path) -> None:
    """Every segment costs an open file, so that a restart goes on in the newest one."""
    for number in range(8):
        tier = open_tier(tmp_path)
        put(tier, number)
        tier.close()
    assert len(list(tmp_path.glob("segment-*"))) == 2
    tier = open_tier(tmp_path)
    assert numbers(inventory_keys(tier)) == list(range(8))
    tier.close()


def test_files_never_exceed_the_capacity(tier: DiskTier) -> None:
    rng = random.Random(1)
    for number in range(150):
        if number % 3 == 0:
            load_one(tier, numbered_block(rng.randrange(number + 1), BLOCK))
        put(tier, number)
        assert bytes_on_disk(tier.folder) == tier.statistics().used_bytes <= CAPACITY
    assert tier.statistics().evictions > 50


def test_first_in_first_out(tier: DiskTier) -> None:
    put(tier, *range(28))
    assert numbers(put(tier, 28)) == [0, 1, 2, 3], "one segment at a time"
    assert put(tier, 29, 30, 31) == []
    assert numbers(put(tier, 32)) == [4, 5, 6, 7]


def test_blocks_that_were_read_stay_for_another_round(tier: DiskTier) -> None:
    put(tier, *range(28))
    block = numbered_block(2, BLOCK)
    load_one(tier, block)
    assert numbers(put(tier, 28)) == [0, 1, 3]
    assert numbers(inventory_keys(tier))[-2:] == [2, 28]
    assert load_one(tier, block) == (None, bytes(block.data))
    left = put(tier, *range(29, 49))
    assert 2 not in numbers(left), "read again since"
    left = [n for start in range(49, 109, 4) for n in numbers(put(tier, *range(start, start + 4)))]
    assert 2 in left
    assert numbered_key(2) not in tier


def test_blocks_offered_again_stay_for_another_round(tier: DiskTier) -> None:
    put(tier, *range(28))
    put(tier, 1)
    assert numbers(put(tier, 28)) == [0, 2, 3]


def test_cleaning_frees_half_a_segment_even_if_all_was_read(tier: DiskTier) -> None:
    put(tier, *range(28))
    for number in range(28):
        load_one(tier, numbered_block(number, BLOCK))
    assert numbers(put(tier, 28)) == [2, 3]
    assert numbers(inventory_keys(tier))[-3:] == [0, 1, 28]


def test_a_block_dropped_while_it_is_due_to_survive_stays_dropped(tier: DiskTier) -> None:
    put(tier, *range(28))
    load_one(tier, numbered_block(0, BLOCK))
    tier.drop([numbered_key(0), numbered_key(1)])
    assert numbers(put(tier, 28)) == [2, 3]


def test_survivors_come_back_after_a_restart(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    put(tier, *range(28))
    load_one(tier, numbered_block(2, BLOCK))
    put(tier, 28)
    before = tier.inventory()
    tier.close()
    tier = open_tier(tmp_path)
    assert tier.inventory() == before
    tier.close()


def test_a_drop_is_a_hint_that_a_restart_forgets(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    put(tier, 1, 2)
    tier.drop([numbered_key(1)])
    put(tier, 3)
    tier.close()
    tier = open_tier(tmp_path)
    assert numbers(inventory_keys(tier)) == [1, 2, 3]
    tier.close()


def test_of_two_records_of_a_key_the_newer_counts(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    old, new = numbered_block(1, BLOCK), numbered_block(2, 2 * BLOCK)
    tier.store([old])
    tier.drop([old.key])
    tier.store([Block(old.key, new.data, new.checksum)])
    tier.close()
    tier = open_tier(tmp_path)
    (info,) = tier.inventory()
    assert (info.key, info.length_bytes, info.checksum) == (old.key, 2 * BLOCK, new.checksum)
    tier.close()


def test_a_smaller_capacity_evicts_the_oldest(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    put(tier, *range(28))
    tier.close()
    tier = open_tier(tmp_path, CAPACITY // 2)
    assert bytes_on_disk(tmp_path) <= CAPACITY // 2
    left = numbers(inventory_keys(tier))
    assert left == list(range(28 - len(left), 28))
    assert len(left) >= 12
    put(tier, *range(100, 110))
    assert bytes_on_disk(tmp_path) <= CAPACITY // 2
    tier.close()


def test_one_user_per_folder(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    with pytest.raises(ConfigurationError, match="in use by another node"):
        open_tier(tmp_path)
    tier.close()
    open_tier(tmp_path).close()


def test_the_folder_is_made_and_private(tmp_path: Path) -> None:
    tier = open_tier(tmp_path / "a" / "b")
    put(tier, 1)
    (segment,) = tier.folder.glob("segment-*")
    assert stat.S_IMODE(tier.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(segment.stat().st_mode) == 0o600
    tier.close()


def test_refuses_what_cannot_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"cannot write to .*file"):
        open_tier(tmp_path / "file")
    with pytest.raises(ConfigurationError, match="at least 131072 bytes"):
        open_tier(tmp_path / "small", 131071)
    with pytest.raises(ConfigurationError, match="at least 131072 bytes"):
        DiskTier(tmp_path / "small", SEGMENT, segment_bytes=SEGMENT)
    assert not (tmp_path / "small").exists()
    (tmp_path / "odd" / "segment-0000000001.kv").mkdir(parents=True)
    with pytest.raises(ConfigurationError, match="cannot open the segments"):
        open_tier(tmp_path / "odd")
    (tmp_path / "odd" / "segment-0000000001.kv").rmdir()
    open_tier(tmp_path / "odd").close()


@pytest.mark.parametrize(
    ("capacity", "segment"),
    [(128 * KIB, 16 * KIB), (64 * MIB, 8 * MIB), (GIB, 64 * MIB), (1024 * GIB, 4 * GIB)],
)
def test_segments_suit_the_capacity(capacity: int, segment: int) -> None:
    assert default_segment_bytes(capacity) == segment


def test_two_segments_are_enough(tmp_path: Path) -> None:
    tier = DiskTier(tmp_path, 2 * SEGMENT, segment_bytes=SEGMENT)
    for number in range(20):
        put(tier, number)
        assert bytes_on_disk(tmp_path) <= 2 * SEGMENT
    assert numbered_key(19) in tier
    tier.close()


def test_a_block_longer_than_a_segment_has_one_of_its_own(tier: DiskTier) -> None:
    long = numbered_block(1, 3 * SEGMENT)
    assert list(tier.store([numbered_block(0, BLOCK), long]).stored)[-1] == long.key
    put(tier, 2)
    assert load_one(tier, long) == (None, bytes(long.data))
    for number in range(10, 60):
        put(tier, number)
    assert long.key not in tier


def test_payloads_in_place_and_staged_are_written_alike(tier: DiskTier) -> None:
    """Page-aligned memory goes to disk from where it lies, other memory through staging."""
    data = random.Random(3).randbytes(3 * BLOCK)
    memory = aligned_buffer(4 * BLOCK)
    blocks = []
    for i, (offset, length) in enumerate([(0, BLOCK), (0, 5000), (1, BLOCK), (7, 3000)]):
        view = memory[offset : offset + length]
        view[:] = data[:length]
        block = numbered_block(i, 1)
        tier.store([Block(block.key, view, checksum(view))])
        blocks.append((block.key, length))
    for key, length in blocks:
        for into in (aligned_buffer(length), aligned_buffer(length + 1)[1:]):
            assert tier.load([key], [into]) == [None]
            assert into == data[:length]


def test_a_batch_larger_than_one_call_can_write(tmp_path: Path) -> None:
    """More buffers than the kernel takes at a time, over several segments."""
    tier = DiskTier(tmp_path, 64 * MIB, segment_bytes=4 * MIB)
    memory = aligned_buffer(1500 * 4096)
    blocks = []
    for i in range(1500):
        view = memory[4096 * i : 4096 * (i + 1)]
        view[:8] = i.to_bytes(8, "little")
        blocks.append(Block(numbered_key(i), view, checksum(view)))
    assert len(tier.store(blocks).stored) == 1500
    into = aligned_buffer(1500 * 4096)
    views = [into[4096 * i : 4096 * (i + 1)] for i in range(1500)]
    assert set(tier.load([b.key for b in blocks], views)) == {None}
    assert into == memory
    tier.close()


def test_nothing_stays_open(tmp_path: Path) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    tier = open_tier(tmp_path)
    put(tier, *range(28))
    put(tier, *range(30, 50))
    load_one(tier, numbered_block(49, BLOCK))
    tier.close()
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_a_closed_tier_holds_nothing(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    put(tier, 1)
    tier.close()
    block = numbered_block(1, BLOCK)
    assert list(tier.store([block]).stored) == []
    assert load_one(tier, block)[0] is not None


def test_representation_names_folder_and_way_of_io(tier: DiskTier) -> None:
    put(tier, 1)
    how = "direct" if tier.direct else "buffered"
    assert repr(tier) == (
        f"DiskTier({tier.folder}, 1 blocks, {RECORD}/{CAPACITY} bytes, {how} I/O)"
    )

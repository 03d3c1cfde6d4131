"""A filesystem without space: blocks are left out and counted, reads go on, and so do writes when
there is space again."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from kvstore.testing.tier_conformance import inventory_keys, load_one, numbered_block
from kvstore.tiers.disk.tier import DiskTier

BLOCK = 60 << 10
FILESYSTEM_BYTES = 4 << 20


def put(tier: DiskTier, *numbers: int) -> int:
    """How many went in."""
    return len(tier.store([numbered_block(number, BLOCK) for number in numbers]).stored)


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def check_all_here(tier: DiskTier) -> None:
    for key in inventory_keys(tier):
        block = numbered_block(int.from_bytes(key.hash, "big"), BLOCK)
        assert load_one(tier, block) == (None, bytes(block.data))


def test_a_tier_larger_than_the_filesystem(small_filesystem: Path) -> None:
    with closing(DiskTier(small_filesystem, 8 * FILESYSTEM_BYTES)) as tier:
        stored = sum(put(tier, number) for number in range(100))
        assert 50 <= stored < FILESYSTEM_BYTES // BLOCK
        assert tier.statistics().errors == 100 - stored
        assert tier.statistics().blocks == stored
        check_all_here(tier)
    with closing(DiskTier(small_filesystem, 8 * FILESYSTEM_BYTES)) as tier:
        assert tier.statistics().blocks == stored
        check_all_here(tier)


def test_space_that_comes_back_is_used(small_filesystem: Path) -> None:
    others = small_filesystem / "somebody else's file"
    others.write_bytes(bytes(FILESYSTEM_BYTES // 2))
    with closing(DiskTier(small_filesystem / "tier", FILESYSTEM_BYTES)) as tier:
        before = put(tier, *range(20)) + put(tier, *range(20, 60))
        assert before < 40
        assert tier.statistics().errors > 0
        check_all_here(tier)
        others.unlink()
        assert put(tier, *range(100, 110)) == 10
        check_all_here(tier)
        assert tier.statistics().used_bytes <= tier.capacity_bytes


def test_a_full_tier_on_a_full_filesystem_goes_on_over_its_own_files(
    small_filesystem: Path,
) -> None:
    """The files of evicted segments are written over: no new space is needed."""
    capacity = 2 << 20
    with closing(DiskTier(small_filesystem, capacity)) as tier:
        for number in range(60):
            assert put(tier, number) == 1
        others = small_filesystem / "somebody else's file"
        with pytest.raises(OSError, match="No space"):
            fill(others)
        stored = sum(put(tier, number) for number in range(100, 200))
        assert stored > 50
        assert tier.statistics().errors == 100 - stored
        check_all_here(tier)
        others.unlink()
        assert put(tier, 300) == 1
        check_all_here(tier)

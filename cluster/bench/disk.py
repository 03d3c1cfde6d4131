"""`kvstore bench disk`: the disk tier beside plain O_DIRECT writes and reads of the same blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cluster.bench.alternate import best_rates
from cluster.bench.case import BenchOptions, Case
from cluster.bench.ceilings import (
    BLOCK_BYTES,
    NUM_BLOCKS,
    DirectFile,
    random_blocks,
    touched_blocks,
)
from kvstore.core.checksum import checksum
from kvstore.core.errors import ConfigurationError
from kvstore.core.ids import BlockHash, BlockKey, LayoutFingerprint
from kvstore.tiers.base import Block
from kvstore.tiers.disk.tier import DiskTier

_LAYOUT = LayoutFingerprint(b"bench disk      ")
_CAPACITY_BYTES = 384 << 20
_FILL_ROUNDS = 3
"""A tier in use is full, and cleans while it is written; so is this one when measuring begins."""
_ROUNDS = 12
_GB = NUM_BLOCKS * BLOCK_BYTES / 1e9
_DEPTH = "2 MiB blocks, one at a time"


def disk(options: BenchOptions) -> Iterator[Case]:
    """Demotion (store, durable) and loading of 2 MiB blocks, in turns with the ceilings.

    Raises ConfigurationError if the folder is on a filesystem without O_DIRECT.
    """
    blocks = random_blocks()
    checksums = [checksum(block) for block in blocks]
    into = touched_blocks()
    tier = DiskTier(options.folder / "tier", _CAPACITY_BYTES)
    if not tier.direct:
        tier.close()
        raise ConfigurationError(
            f"bench disk: {options.folder} has no O_DIRECT; give --folder on a local disk"
        )
    plain = DirectFile(options.folder, NUM_BLOCKS * BLOCK_BYTES)
    batches = _Batches(blocks, checksums)
    try:
        for _ in range(_FILL_ROUNDS):
            _store(tier, batches.fresh())
        writes = best_rates(
            _GB,
            {"plain": lambda: plain.write(blocks), "tier": lambda: _store(tier, batches.fresh())},
            _ROUNDS,
        )
        yield _case("demote_2mib", writes, f"O_DIRECT write, {_DEPTH}, then fdatasync")
        keys = [block.key for block in batches.latest]
        reads = best_rates(
            _GB,
            {"plain": lambda: plain.read(into), "tier": lambda: _load(tier, keys, into)},
            _ROUNDS,
        )
        _check(into, checksums)
        yield _case("load_2mib", reads, f"O_DIRECT read, {_DEPTH}")
    finally:
        plain.close()
        tier.close()


class _Batches:
    """The same bytes under new keys each time, for a tier does not write twice what it has."""

    def __init__(self, blocks: Sequence[memoryview], checksums: Sequence[int]) -> None:
        self._blocks = blocks
        self._checksums = checksums
        self._number = 0
        self.latest: list[Block] = []

    def fresh(self) -> list[Block]:
        self.latest = [
            Block(self._key(), data, crc)
            for data, crc in zip(self._blocks, self._checksums, strict=True)
        ]
        return self.latest

    def _key(self) -> BlockKey:
        self._number += 1
        return BlockKey(_LAYOUT, BlockHash(self._number.to_bytes(32, "little")))


def _store(tier: DiskTier, batch: Sequence[Block]) -> None:
    stored = tier.store(batch).stored
    if len(stored) != len(batch):
        raise ConfigurationError(
            f"bench disk: {len(batch) - len(stored)} blocks did not go in; free space in the folder"
        )


def _load(tier: DiskTier, keys: Sequence[BlockKey], into: Sequence[memoryview]) -> None:
    reasons = tier.load(keys, into)
    if any(reasons):
        raise ConfigurationError(f"bench disk: blocks did not come back: {reasons}")


def _check(into: Sequence[memoryview], checksums: Sequence[int]) -> None:
    assert [checksum(data) for data in into] == list(checksums)


def _case(name: str, rates: dict[str, float], against: str) -> Case:
    return Case(name, rates["tier"], "GB/s", rates["plain"], against)

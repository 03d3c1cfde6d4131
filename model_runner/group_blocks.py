"""What block tables of one KV group do with its device blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvstore.core.ids import BlockHash
from kvstore.tiers.device.pool import BlockPool
from model_runner.kv_groups import BlockTable, KVGroup
from model_runner.store import BlockRun


@dataclass(frozen=True, slots=True)
class GroupBlocks:
    """A KV group and its pool. Pure; owned by the engine's thread.

    `hashes` are always those of the whole sequence, from its first block on.
    """

    number: int
    group: KVGroup
    pool: BlockPool

    def usable(self, hashes: Sequence[BlockHash], num_blocks: int) -> int:
        """Of the leading `num_blocks`, how many can be gone on after: all blocks that a token after
        them sees are here. Looks at each block once."""
        end = first = num_blocks
        while first > self.group.first_block(end):
            first -= 1
            if hashes[first] not in self.pool:
                end = first
        return end

    def take(
        self, hashes: Sequence[BlockHash], num_hits: int, num_blocks: int, spare_blocks: int
    ) -> BlockTable | None:
        """A table that goes on after a hit, with room for `num_blocks` of the sequence, or as many
        of them as are given at admission. None if fewer than `spare_blocks` would stay free."""
        first = self.group.first_block(num_hits)
        table = BlockTable(self.pool.match(hashes[first:num_hits]), first, num_hits)
        assert table.end == num_hits
        given = num_blocks - num_hits
        if self.group.admission_blocks is not None:
            given = min(given, self.group.admission_blocks)
        if given + spare_blocks > self.pool.num_free:
            self.give_up(table)
            return None
        table.block_ids += self.pool.allocate(given)
        return table

    def end_of_room(self, table: BlockTable) -> int:
        """The block of the sequence before which room can be had."""
        return table.end + self.pool.num_free

    def extend(self, table: BlockTable, end: int) -> None:
        if end > table.end:
            table.block_ids += self.pool.allocate(end - table.end)

    def growth(self, num_blocks: int, longest: int) -> int:
        """How many more blocks a table of `longest` has than one of `num_blocks`."""
        held = self.group.admission_blocks
        return longest - num_blocks if held is None else min(longest, held) - min(num_blocks, held)

    def give_up(self, table: BlockTable) -> None:
        self.pool.release(table.block_ids)

    def drop_behind_window(self, table: BlockTable, num_computed: int) -> None:
        """No token that is still to be computed sees these blocks. Named ones stay cached, but what
        nobody ever found is not likely to be found: a long prompt does not drive out the ends of
        others, after which they go on."""
        first = self.group.first_seen(num_computed)
        if first <= table.first:
            return
        self.pool.release(table.drop_before(min(first, table.num_hits)))
        self.pool.release(table.drop_before(first), evict_first=True)

    def name(
        self, table: BlockTable, hashes: Sequence[BlockHash], first: int, end: int
    ) -> BlockRun:
        """Name blocks [first, end) of the sequence, which are complete; all that of them are here,
        with a reference on each for the caller to release."""
        first = max(first, min(table.first, end))
        own = hashes[first:end]
        self.pool.name(table.part(first, end), own)
        return self.hold(own)

    def completing(
        self, table: BlockTable, hashes: Sequence[BlockHash], first: int, end: int
    ) -> BlockRun:
        """Blocks [first, end) of the sequence, which have no names yet, with a reference on each
        for the caller to release."""
        block_ids = table.part(first, end)
        self.pool.hold(block_ids)
        return BlockRun(hashes[first:end], block_ids, self.number)

    def hold(self, hashes: Sequence[BlockHash]) -> BlockRun:
        """Blocks that are known to be here, with a reference on each for the caller to release."""
        block_ids = self.pool.match(hashes)
        assert len(block_ids) == len(hashes)
        return BlockRun(hashes, block_ids, self.number)

    def targets(self, table: BlockTable, first: int, end: int) -> list[int]:
        """Where the store may put blocks [first, end) of the sequence, or the last of them, of
        which it brings as many as a window shows."""
        return table.part(first, first + self._num_loaded(end - first))

    def loaded(self, table: BlockTable, first: int, end: int) -> int:
        """The store brought blocks [first, end) of the sequence, or the last of them, where it was
        told to. The first that is here now."""
        here = end - self._num_loaded(end - first)
        if here > first:  # those before are behind the window, and so is all that the device had
            self.pool.release(table.drop_before(first))
            table.first = here
        return here

    def _num_loaded(self, num_blocks: int) -> int:
        return num_blocks - self.group.first_block(num_blocks)


def longest_hit(groups: Sequence[GroupBlocks], hashes: Sequence[BlockHash], num_blocks: int) -> int:
    """Of the leading `num_blocks`, how many all groups can go on after."""
    while True:
        longest = num_blocks
        for group in groups:
            longest = group.usable(hashes, longest)
        if longest == num_blocks:
            return longest
        num_blocks = longest

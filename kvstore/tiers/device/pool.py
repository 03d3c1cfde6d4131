"""Which device block holds what. Pure bookkeeping: it names blocks by number and touches no bytes.

```
            allocate            name                    release (last reference)
   free ──────────────▶ held ─────────▶ held, named ───────────────────▶ cached ──┐
    ▲                    │ release          ▲              match            │      │ evicted by
    └────────────────────┘                  └───────────────────────────────┘      │ allocate
    └──────────────────────────────────────────────────────────────────────────────┘
```
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from kvstore.core.errors import ResourceExhaustedError
from kvstore.core.ids import BlockHash


class PoolEvents(NamedTuple):
    """What became findable and what no longer is, since the last drain. Disjoint."""

    stored: list[BlockHash]
    removed: list[BlockHash]


class BlockPool:
    """References, names and the order of eviction of `num_blocks` device blocks.

    Ownership: whoever got a block from `match`, `hold` or `allocate` has a reference on it and
    gives it back with `release`, once. Threads: one, the engine's. Cost: O(1) a block for every
    method but `inventory`.
    """

    def __init__(self, num_blocks: int) -> None:
        assert num_blocks >= 1
        self.num_blocks = num_blocks
        self._references = [0] * num_blocks
        self._hash_of: list[BlockHash | None] = [None] * num_blocks
        self._block_of: dict[BlockHash, int] = {}
        self._free = list(range(num_blocks - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()
        """Named blocks that nobody references; the next to be evicted comes first."""
        self._spent: OrderedDict[int, None] = OrderedDict()
        """Likewise; all of them are evicted before those."""
        self._evict_first: set[int] = set()
        """Blocks that go there when nobody references them any more."""
        self._stored: dict[BlockHash, None] = {}
        self._removed: dict[BlockHash, None] = {}

    @property
    def num_free(self) -> int:
        """Blocks that `allocate` can give out: free ones, and cached ones that nobody holds."""
        return len(self._free) + len(self._spent) + len(self._cached)

    def match(self, hashes: Sequence[BlockHash]) -> list[int]:
        """Blocks of the leading hashes that are here, with a reference on each."""
        blocks = []
        for block_hash in hashes:
            block = self._block_of.get(block_hash)
            if block is None:
                break
            self._hold(block)
            blocks.append(block)
        return blocks

    def hold(self, block_ids: Sequence[int]) -> None:
        """Another reference on each of these blocks, which somebody holds already."""
        for block in block_ids:
            assert self._references[block] > 0, f"block {block} is not held"
            self._references[block] += 1

    def allocate(self, count: int) -> list[int]:
        """Nameless blocks with one reference each; evicts cached ones, the longest unused first.

        Raises ResourceExhaustedError, allocating nothing, if fewer than `count` are to be had.
        """
        assert count >= 0
        if count > self.num_free:
            raise ResourceExhaustedError(
                f"{count} device blocks wanted, {self.num_free} of {self.num_blocks} free: "
                "wait for a request to finish, or raise device_blocks"
            )
        return [self._take() for _ in range(count)]

    def name(self, block_ids: Sequence[int], hashes: Sequence[BlockHash]) -> None:
        """These held blocks are complete: from now on `match` finds them by these hashes.

        A hash that another block has already stays with it, and this block stays nameless.
        """
        for block, block_hash in zip(block_ids, hashes, strict=True):
            assert self._references[block] > 0, f"block {block} is named but not held"
            if self._block_of.setdefault(block_hash, block) != block:
                continue
            if self._hash_of[block] is None:
                self._hash_of[block] = block_hash
                self._note(block_hash, self._removed, self._stored)
            assert self._hash_of[block] == block_hash, f"block {block} already has another name"

    def release(self, block_ids: Sequence[int], *, evict_first: bool = False) -> None:
        """Give back one reference on each block of a block table, in the table's order.

        Nameless blocks become free at once. Named ones stay cached, and the tail of the table is
        evicted before its head, since a block is of no use without those before it. With
        `evict_first` they will be evicted before all others, once nobody holds them, unless `match`
        finds them before that.
        """
        for block in reversed(block_ids):
            assert self._references[block] > 0, f"block {block} is released but not held"
            if evict_first:
                self._evict_first.add(block)
            self._references[block] -= 1
            if self._references[block] == 0:
                self._rest(block)

    def drop(self, block_hash: BlockHash) -> bool:
        """Take a name away, so that `match` finds it no more; whether there was one.

        Whoever holds the block keeps its bytes until the release.
        """
        block = self._block_of.pop(block_hash, None)
        if block is None:
            return False
        self._hash_of[block] = None
        self._note(block_hash, self._stored, self._removed)
        if self._references[block] == 0:
            del self._resting(block)[block]
            self._free.append(block)
        return True

    def __contains__(self, block_hash: BlockHash) -> bool:
        return block_hash in self._block_of

    def drain_events(self) -> PoolEvents:
        """Changes since the last drain; a hash that came and went (or the reverse) is in neither
        list. Holds at most `num_blocks` of each, however late it is called."""
        events = PoolEvents(list(self._stored), list(self._removed))
        self._stored.clear()
        self._removed.clear()
        return events

    def inventory(self) -> list[BlockHash]:
        """All hashes that `match` finds, oldest name first."""
        return list(self._block_of)

    def __repr__(self) -> str:
        held = self.num_blocks - self.num_free
        return (
            f"BlockPool({self.num_blocks} blocks: {held} held, "
            f"{len(self._spent) + len(self._cached)} cached, "
            f"{len(self._free)} free)"
        )

    def _hold(self, block: int) -> None:
        if self._references[block] == 0:
            del self._resting(block)[block]
        self._evict_first.discard(block)
        self._references[block] += 1

    def _take(self) -> int:
        block = self._free.pop() if self._free else self._evict()
        self._evict_first.discard(block)
        self._references[block] = 1
        return block

    def _evict(self) -> int:
        block, _ = (self._spent or self._cached).popitem(last=False)
        block_hash = self._hash_of[block]
        assert block_hash is not None
        self._hash_of[block] = None
        del self._block_of[block_hash]
        self._note(block_hash, self._stored, self._removed)
        return block

    def _rest(self, block: int) -> None:
        if self._hash_of[block] is None:
            self._free.append(block)
        else:
            self._resting(block)[block] = None

    def _resting(self, block: int) -> OrderedDict[int, None]:
        """Where it is while nobody references it."""
        return self._spent if block in self._evict_first else self._cached

    @staticmethod
    def _note(
        block_hash: BlockHash, cancels: dict[BlockHash, None], adds: dict[BlockHash, None]
    ) -> None:
        if block_hash in cancels:
            del cancels[block_hash]
        else:
            adds[block_hash] = None

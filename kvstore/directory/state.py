"""The directory's state: events in, replicas out. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from kvstore.core.ids import BlockHash, BlockKeys, LayoutFingerprint, MemberId
from kvstore.directory.base import Replica
from kvstore.tiers.base import TierKind

_TIERS = (TierKind.DEVICE, TierKind.HOST, TierKind.DISK)


class DirectoryState:
    """A bit for each (publisher, tier), and a mask of bits for each block.

        holders   a, host → bit 0    b, host → bit 1    a, disk → bit 2
        blocks    …7f → 0b011        …c2 → 0b110

    To forget a publisher, or one of its tiers, is to take its bit out of use: it costs the same
    whatever was held. `sweep` takes the bit out of the masks afterwards, in steps, and frees it.
    """

    def __init__(self) -> None:
        self._blocks: dict[LayoutFingerprint, dict[BlockHash, int]] = {}
        self._masks: dict[int, int] = {}
        """The one object for each mask in use."""
        self._bits: dict[Replica, int] = {}
        self._live = 0
        self._dead = 0
        self._free: list[int] = []
        self._sweeping = 0
        self._unswept: list[tuple[LayoutFingerprint, list[BlockHash]]] = []
        self._decoded: dict[int, Sequence[Replica]] = {}

    def __len__(self) -> int:
        """Blocks remembered: those with a replica, and those not swept yet."""
        return sum(map(len, self._blocks.values()))

    def stored(self, publisher: MemberId, tier: TierKind, keys: BlockKeys) -> None:
        bit = self._bit(Replica(publisher, tier))
        blocks, masks = self._blocks.setdefault(keys.layout, {}), self._masks
        for block_hash in keys.hashes:
            mask = blocks.get(block_hash, 0) | bit
            blocks[block_hash] = masks.setdefault(mask, mask)

    def removed(self, publisher: MemberId, tier: TierKind, keys: BlockKeys) -> None:
        bit = self._bits.get(Replica(publisher, tier), 0)
        blocks = self._blocks.get(keys.layout, {})
        for block_hash in keys.hashes:
            if blocks.get(block_hash, 0) & bit:
                self._keep(blocks, block_hash, ~bit)

    def cleared(self, publisher: MemberId, tier: TierKind) -> None:
        bit = self._bits.pop(Replica(publisher, tier), 0)
        self._live &= ~bit
        self._dead |= bit
        self._decoded.clear()

    def forget(self, publisher: MemberId) -> None:
        for tier in _TIERS:
            self.cleared(publisher, tier)

    def locate(self, keys: BlockKeys) -> list[Sequence[Replica]]:
        """Blocks with the same replicas share one sequence."""
        blocks, live = self._blocks.get(keys.layout, {}), self._live
        return [self._replicas(blocks.get(block_hash, 0) & live) for block_hash in keys.hashes]

    def longest_prefix(self, keys: BlockKeys) -> int:
        blocks, live = self._blocks.get(keys.layout, {}), self._live
        for length, block_hash in enumerate(keys.hashes):
            if not blocks.get(block_hash, 0) & live:
                return length
        return len(keys)

    def sweep(self, max_blocks: int) -> bool:
        """Go on removing what is forgotten, over `max_blocks` at most; whether there is more."""
        if not self._unswept:
            if not self._dead:
                return False
            self._sweeping, self._dead = self._dead, 0
            self._unswept = [(layout, list(held)) for layout, held in self._blocks.items()]
        while self._unswept and max_blocks > 0:
            max_blocks -= self._sweep_last(max_blocks)
        if not self._unswept:
            self._end_sweep()
        return bool(self._unswept or self._dead)

    def _sweep_last(self, max_blocks: int) -> int:
        """Sweep blocks off the end of the last list; returns how many."""
        layout, unswept = self._unswept[-1]
        blocks = self._blocks[layout]
        part = unswept[-max_blocks:]
        del unswept[-max_blocks:]
        for block_hash in part:
            if blocks.get(block_hash, 0) & self._sweeping:
                self._keep(blocks, block_hash, ~self._sweeping)
        if not unswept:
            self._unswept.pop()
        return len(part)

    def _end_sweep(self) -> None:
        self._free += [
            1 << i for i in range(self._sweeping.bit_length()) if self._sweeping >> i & 1
        ]
        self._sweeping = 0
        self._masks.clear()
        for layout in [layout for layout, held in self._blocks.items() if not held]:
            del self._blocks[layout]

    def _keep(self, blocks: dict[BlockHash, int], block_hash: BlockHash, bits: int) -> None:
        mask = blocks[block_hash] & bits
        if mask:
            blocks[block_hash] = self._masks.setdefault(mask, mask)
        else:
            del blocks[block_hash]

    def _bit(self, replica: Replica) -> int:
        bit = self._bits.get(replica)
        if bit is None:
            bit = self._free.pop() if self._free else self._next_bit()
            self._bits[replica] = bit
            self._live |= bit
        return bit

    def _next_bit(self) -> int:
        """The lowest that is neither in use nor still in masks."""
        return 1 << (self._live | self._dead | self._sweeping).bit_length()

    def _replicas(self, mask: int) -> Sequence[Replica]:
        replicas = self._decoded.get(mask)
        if replicas is None:
            held = [replica for replica, bit in self._bits.items() if mask & bit]
            replicas = tuple(sorted(held, key=lambda r: (r.tier, r.publisher)))
            self._decoded[mask] = replicas
        return replicas

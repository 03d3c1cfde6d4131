"""Blocks that are read while they are written.

           ┌─ commit ──▶ resident: the readers' references are references on the block now
 pending ──┼─ abort ───▶ free; or, where it has readers,
           └─ set_aside (the writer may still write) ──▶ aside ──last reference given back──▶ free

A slot that is set aside has a new generation and no key: nobody can find it, its key is free for
another slot, and its memory waits for all who may still touch it.
"""

from __future__ import annotations

from collections.abc import Iterable

from kvstore.core.ids import BlockKey
from kvstore.tiers.base import MissReason, Resident, Slot
from kvstore.tiers.host.blocks import HostBlocks


def acquire_pending(blocks: HostBlocks, keys: Iterable[BlockKey]) -> list[Slot | None]:
    """See `AddressableTier.acquire_pending`."""
    rows = [blocks.pending.get(key) for key in keys]
    for row in rows:
        if row is not None:
            blocks.rows.references[row] += 1
    return [None if row is None else blocks.rows.slot(row) for row in rows]


def streamed(blocks: HostBlocks, slot: Slot) -> Resident | MissReason:
    """What became of a slot on which a reference is held."""
    row = blocks.row_of(slot)
    if row in blocks.aside:
        return MissReason.FAILED
    if blocks.pending.get(blocks.rows.keys[row]) == row:
        return MissReason.PENDING
    return blocks.rows.residents([row])[0]

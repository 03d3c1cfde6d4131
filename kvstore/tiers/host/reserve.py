"""Finds room for new blocks in the books of a host tier, evicting others as needed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager

from kvstore.core.ids import BlockKey, LayoutFingerprint
from kvstore.tiers.base import Reserved, ReserveOutcome, Slot
from kvstore.tiers.host.blocks import HostBlocks

_RESERVED = ReserveOutcome.RESERVED
_EXISTS = ReserveOutcome.EXISTS
_PENDING = ReserveOutcome.PENDING
_NO_SPACE = ReserveOutcome.NO_SPACE

_FRUITLESS_VICTIMS_MAX = 16
"""Blocks that one search for room may evict in vain. Without a bound, a slab pinned by a few long
leases would cost the whole cache; each attempt still brings some slab closer to being empty."""


def reserve(blocks: HostBlocks, keys: Sequence[BlockKey], block_bytes: int) -> Reserved:
    """See `AddressableTier.reserve`. Room runs out from the tail of `keys`."""
    blocks.touch(keys)  # whoever extends a chain uses it
    outcomes = _classify(blocks, keys)
    wanted = [key for key, outcome in zip(keys, outcomes, strict=True) if outcome is _RESERVED]
    present = [key for key, outcome in zip(keys, outcomes, strict=True) if outcome is _EXISTS]
    evicted: list[BlockKey] = []
    with _held(blocks, present):
        slots = _allocate(blocks, wanted, block_bytes, evicted)
    refused = set(wanted[len(slots) :])
    outcomes = [
        _NO_SPACE if key in refused else outcome
        for key, outcome in zip(keys, outcomes, strict=True)
    ]
    return Reserved(outcomes, slots, evicted)


def evict_to(blocks: HostBlocks, target_bytes: int) -> list[BlockKey]:
    """Evict until `used_bytes` is at most `target_bytes` or what is left is in use."""
    return _evict_down(blocks, target_bytes, blocks.evictable)


def evict_within(
    blocks: HostBlocks, layouts: Collection[LayoutFingerprint], needed_bytes: int
) -> list[BlockKey]:
    """See `AddressableTier.evict_within`."""
    wanted = frozenset(layouts)
    return _evict_down(
        blocks,
        blocks.allocator.used_bytes - needed_bytes,
        lambda key: key.layout in wanted and blocks.evictable(key),
    )


def _evict_down(
    blocks: HostBlocks, target_bytes: int, evictable: Callable[[BlockKey], bool]
) -> list[BlockKey]:
    evicted: list[BlockKey] = []
    count = 1
    while (used_bytes := blocks.allocator.used_bytes) > target_bytes:
        victims = blocks.policy.victims(count, evictable)
        if not victims:
            break
        _evict(blocks, victims, evicted)
        left_bytes = blocks.allocator.used_bytes
        victim_bytes = (used_bytes - left_bytes) // len(victims)
        count = max((left_bytes - target_bytes) // victim_bytes, 1)
    return evicted


def _classify(blocks: HostBlocks, keys: Sequence[BlockKey]) -> list[ReserveOutcome]:
    """RESERVED for those that need a slot. A key that comes again in the batch is PENDING, and so
    is a dropped block that is still acquired: its references are counted by key."""
    outcomes = []
    wanted = set[BlockKey]()
    for key in keys:
        if key in blocks.resident:
            outcomes.append(_EXISTS)
        elif key in blocks.pending or key in wanted or key in blocks.dropped:
            outcomes.append(_PENDING)
        else:
            outcomes.append(_RESERVED)
            wanted.add(key)
    return outcomes


@contextmanager
def _held(blocks: HostBlocks, keys: Iterable[BlockKey]) -> Iterator[None]:
    """A chain that is being extended does not lose its head to its own tail."""
    rows, references = [blocks.resident[key] for key in keys], blocks.rows.references
    for row in rows:
        references[row] += 1
    try:
        yield
    finally:
        for row in rows:
            references[row] -= 1


def _allocate(
    blocks: HostBlocks, keys: list[BlockKey], block_bytes: int, evicted: list[BlockKey]
) -> list[Slot]:
    """Slots for as many leading keys as possible."""
    slots: list[Slot] = []
    for i, key in enumerate(keys):
        slot = blocks.allocate(key, block_bytes)
        if slot is None:
            _make_room(blocks, block_bytes, len(keys) - i, evicted)
            slot = blocks.allocate(key, block_bytes)
            if slot is None:
                break
        slots.append(slot)
    return slots


def _make_room(blocks: HostBlocks, block_bytes: int, count: int, evicted: list[BlockKey]) -> None:
    """Evict for up to `count` blocks of one size.

    The first victim tells what the coldest blocks are like: if they are of this size, the rest is
    asked for at once; if not, each takes its slab along and may already be enough.
    """
    batch, fruitless = 1, 0
    while count > 0 and fruitless < _FRUITLESS_VICTIMS_MAX:
        victims = blocks.policy.victims(batch, blocks.evictable)
        if not victims:
            break
        gains = [_evict_for(blocks, victim, block_bytes, evicted) for victim in victims]
        fruitless += gains.count(0)
        count -= sum(gains)
        batch = max(count, 1) if gains[-1] == 1 else 1


def _evict_for(
    blocks: HostBlocks, victim: BlockKey, block_bytes: int, evicted: list[BlockKey]
) -> int:
    """Evict a block; returns how many blocks of `block_bytes` fit in what it leaves.

    A slot of another class is of use only as part of an empty slab. So the coldest block takes all
    of its slab along, if no one uses any of it.
    """
    if victim not in blocks.resident:  # went along with an earlier one
        return 1
    if blocks.same_class(victim, block_bytes):
        _evict(blocks, [victim], evicted)
        return 1
    slab = blocks.evictable_slab(victim)
    if not slab:
        _evict(blocks, [victim], evicted)
        return 0
    blocks.policy.remove(slab)
    _evict(blocks, slab, evicted)
    return blocks.allocator.slots_per_slab(block_bytes)


def _evict(blocks: HostBlocks, keys: list[BlockKey], evicted: list[BlockKey]) -> None:
    for key in keys:
        blocks.evict(key)
    evicted += keys

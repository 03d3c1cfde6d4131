"""What every tier does, whatever it is made of."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, Protocol

from kvstore.core.ids import BlockKey, LayoutFingerprint


class TierKind(IntEnum):
    """Same numbers as `Tier` in block.proto. Smaller is faster."""

    DEVICE = 1
    HOST = 2
    DISK = 3
    REMOTE = 4


class MissReason(IntEnum):
    """Same numbers and meanings as `MissReason` in block.proto."""

    NEVER_STORED = 1
    EVICTED = 2
    PENDING = 3
    CORRUPT = 4
    LATE = 5
    NO_SPACE = 6
    FAILED = 7


@dataclass(frozen=True, slots=True)
class Block:
    """Bytes to store and their committed checksum. The tier copies them; it keeps no reference."""

    key: BlockKey
    data: memoryview
    checksum: int


@dataclass(frozen=True, slots=True)
class BlockInfo:
    key: BlockKey
    length_bytes: int
    checksum: int


@dataclass(frozen=True, slots=True)
class TierStatistics:
    """A frozen snapshot."""

    kind: TierKind
    capacity_bytes: int
    used_bytes: int
    blocks: int
    hits: int
    evictions: int
    corruptions: int
    errors: int


class Tier(Protocol):
    """A bounded set of immutable blocks. `kvstore.testing.tier_conformance` is its test suite.

    Ownership: the tier owns its copies; callers own the buffers that they pass in.
    Threads: safe to call from several threads; calls may block for as long as the medium does.
    Failure: `load` never raises for a bad block, it says why it is a miss; a block that fails its
    checksum is dropped and counted. `store` never raises for want of space, it evicts, or leaves
    blocks out and says which went in. Both raise nothing but programmer errors. Bound: `used_bytes`
    never exceeds `capacity_bytes`.
    """

    kind: TierKind

    def store(self, blocks: Sequence[Block]) -> StoreResult:
        """Copy blocks in, evicting others as needed. Blocks already here are left as they are and
        count as stored."""

    def load(self, keys: Sequence[BlockKey], into: Sequence[memoryview]) -> list[MissReason | None]:
        """Copy blocks out, checksum verified; None where it went well, else why it did not.

        `into[i]` has at least the block's length. On a miss its content is undefined.
        """

    def drop(self, keys: Iterable[BlockKey]) -> list[BlockKey]:
        """Forget blocks; returns those that were here."""

    def info(self, key: BlockKey) -> BlockInfo | None:
        """What is known of a block, not touching its bytes or its place in line for eviction."""

    def __contains__(self, key: BlockKey) -> bool: ...

    def present(self, keys: Sequence[BlockKey]) -> list[bool]:
        """Which of `keys` are in the tier, as `in` says it for one. No use, for eviction."""

    def inventory(self) -> list[BlockInfo]:
        """All blocks here, oldest first."""

    def statistics(self) -> TierStatistics: ...

    def close(self) -> None:
        """Make durable what can be, and give back memory, files and threads. Idempotent."""


@dataclass(frozen=True, slots=True)
class StoreResult:
    stored: Sequence[BlockKey]
    """Blocks that are in the tier now."""
    evicted: Sequence[BlockKey]
    """Blocks that had to leave for them (or that the medium lost on the way)."""


class ReserveOutcome(IntEnum):
    """Same numbers as `ReserveOutcome` in node.proto."""

    RESERVED = 1
    EXISTS = 2
    PENDING = 3
    NO_SPACE = 4
    OVER_QUOTA = 5


class Slot(NamedTuple):
    """Memory of one block inside the arena, for one life of that memory.

    The arena keeps a generation counter for each slot where readers can see it, and raises it
    *before* the memory gets another use: whoever finds the generation unchanged after reading has
    read the right bytes. A named tuple, as `Resident` is, for one is made with each acquire.
    """

    offset: int
    length_bytes: int
    generation: int


@dataclass(frozen=True, slots=True)
class Reserved:
    outcomes: Sequence[ReserveOutcome]
    slots: Sequence[Slot]
    """One for each RESERVED key, in order."""
    evicted: Sequence[BlockKey]
    """Blocks that left to make room."""


class Resident(NamedTuple):
    """A committed block in addressable memory."""

    slot: Slot
    checksum: int


class AddressableTier(Tier, Protocol):
    """A tier whose blocks clients read and write in place: the host tier.

    The two-phase life of a block:

        reserve ──▶ PENDING ──commit──▶ RESIDENT ──evict/drop──▶ gone
                       └────abort────▶ gone          (never while acquired)

    A pending block is invisible to everything but `reserve` and `pending`. Every method is O(1) a
    block and none blocks on anything but a short lock.
    """

    guard: Callable[[BlockKey], bool]
    """Asked about each block that eviction is about to take: True = pass it over. Set it before
    the tier is used. Called under the tier's lock: it is quick, and calls nothing of the tier."""

    def reserve(self, keys: Sequence[BlockKey], block_bytes: int) -> Reserved:
        """Slots for those keys that are neither resident nor pending, evicting unacquired blocks if
        need be."""

    def commit(
        self, keys: Sequence[BlockKey], lengths_bytes: Sequence[int], checksums: Sequence[int]
    ) -> None:
        """Make pending blocks resident. Each length is at most the reserved one."""

    def abort(self, keys: Iterable[BlockKey]) -> None:
        """Give back pending blocks; their slots get a new generation."""

    def pending(self, key: BlockKey) -> bool: ...

    def set_aside(self, keys: Iterable[BlockKey]) -> list[Slot]:
        """As `abort`, where the writer may still write: its slots get a new generation and their
        keys are free, but the memory gets no other use before `release_slots`."""

    def acquire_pending(self, keys: Iterable[BlockKey]) -> list[Slot | None]:
        """Take a reference on each pending block (None otherwise), to read it while it is written.

        It is given back with `release_slots` whatever becomes of the block. Until then its memory
        gets no other use, even if the writer aborts: then only its generation rises.
        """

    def release_slots(self, slots: Iterable[Slot]) -> None:
        """Give back what `set_aside` and `acquire_pending` took."""

    def streamed(self, slots: Iterable[Slot]) -> list[Resident | MissReason]:
        """What became of referenced slots: the block once it is committed, PENDING before, FAILED
        if it never will be."""

    def bytes_needed(self, block_bytes: int) -> int:
        """What a block of that length would add to `used_bytes`. Raises InvalidArgumentError for
        one that never fits."""

    def slot_bytes(self, slot: Slot) -> int:
        """Bytes that a referenced slot takes up, in the same count as `used_bytes`."""

    def acquire(self, keys: Sequence[BlockKey]) -> list[Resident | None]:
        """Take a reference on each resident block (None otherwise); notes the use for eviction."""

    def hold(self, keys: Sequence[BlockKey]) -> list[Resident | None]:
        """As `acquire`, for housekeeping: it is no use, for eviction."""

    def release(self, keys: Iterable[BlockKey]) -> None:
        """Give the references back."""

    def view(self, slot: Slot) -> memoryview:
        """The bytes of a slot in this process, writable, not copied."""

    def evict_to_low_watermark(self) -> list[BlockKey]:
        """If use is above the high watermark, evict down to the low one; returns what left."""

    def evict(self, keys: Iterable[BlockKey]) -> list[BlockKey]:
        """Evict those of `keys` that are here and that nobody uses or guards; returns them."""

    def touch(self, keys: Sequence[BlockKey]) -> None:
        """Note a use of a chain for eviction. It may contain keys that are not here."""

    def retain(
        self, keys: Sequence[BlockKey], priority: int, duration_s: float | None
    ) -> list[BlockKey]:
        """Give resident blocks a retention priority 0-100 (35 where nothing was said), for a time
        or, with None, until they are evicted; returns those that are here. Lower goes first.

        `keys` are consecutive blocks of a chain. A head never goes before its tail: it has at least
        the priority of what follows it, as soon as the two come in one `retain`, `reserve`,
        `acquire` or `touch`. So after retaining the middle of a chain, `touch` the whole chain.
        Raises InvalidArgumentError naming the argument that is out of range.
        """

    def bytes_of(self, layout: LayoutFingerprint) -> int:
        """Bytes of the slots of a layout's blocks, pending ones included, in the same count as
        `used_bytes`. O(1)."""

    def evict_within(
        self, layouts: Collection[LayoutFingerprint], needed_bytes: int
    ) -> list[BlockKey]:
        """Evict blocks of those layouts, in the policy's order, until that many bytes are freed or
        none is left that may go; returns what left. Costs O(blocks passed over): free a batch's
        worth at once."""

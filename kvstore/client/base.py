"""The store as its users see it. `kvstore.client.aio.Client` implements it over any transport;
`kvstore.client.sync.SyncClient` is the same without `await`.

    async with await client.reserve(keys, layout.block_bytes) as reservation:
        for block in reservation.blocks:                 # only those that need writing
            block.view[:] = my_bytes[block.index]
        await reservation.commit()                       # now visible; without it nothing ever is

    async with await client.acquire(keys, deadline_s=0.05) as lease:
        for found in lease.found:
            lease.copy_into(found, my_buffer[found.index])   # raises ChecksumError or
            LeaseExpiredError
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from kvstore.core.ids import BlockKeys
from kvstore.tiers.base import MissReason, TierKind


@dataclass(frozen=True, slots=True)
class PrefixMatch:
    """Longest prefix present: `tiers[i]` is the fastest tier of the i-th key, for the leading keys
    that are there."""

    tiers: Sequence[TierKind]

    def __len__(self) -> int:
        return len(self.tiers)


@dataclass(frozen=True, slots=True)
class ReservedBlock:
    """A block to write. `view` is writable memory of the arena (or a private buffer, on another
    host)."""

    index: int
    """Which of the keys asked for."""
    view: memoryview


@dataclass(frozen=True, slots=True)
class FoundBlock:
    """A block under lease."""

    index: int
    """Which of the keys asked for."""
    tier: TierKind
    """Where it was found; it is in host memory now."""
    view: memoryview
    """Read-only. Trust it only if `Lease.verify` passes after you used it; `copy_into` does that
    for you."""
    checksum: int
    generation: int


class Reservation(Protocol):
    """Space to write blocks that nobody sees until they are committed. One owner; not thread-safe.

    Leaving the context aborts whatever is not committed.
    """

    blocks: Sequence[ReservedBlock]

    async def commit(self, blocks: Sequence[ReservedBlock] | None = None) -> None:
        """Checksum and publish `blocks` (default: all that are left). May be called repeatedly, as
        blocks get full.

        Raises ReservationExpiredError if the time to write ran out: nothing of this call became
        visible.
        """

    async def abort(self) -> None:
        """Give back what is not committed. Idempotent, never raises."""

    async def __aenter__(self) -> Self: ...
    async def __aexit__(self, *exc: object) -> None: ...


class Lease(Protocol):
    """The right to read blocks until `release` or the end of its time, fenced by generation."""

    found: Sequence[FoundBlock]
    """In the order of the keys."""
    misses: dict[int, MissReason]
    """Index of each key not found, and the one reason why."""

    @property
    def prefix_length(self) -> int:
        """How many leading keys were found without a hole."""

    def copy_into(self, block: FoundBlock, into: memoryview) -> None:
        """Copy one block and prove that the copy is right.

        Raises ChecksumError (and tells the node, which drops the replica) or LeaseExpiredError;
        `into` is then undefined. Raises InvalidArgumentError if `into` is too small or not
        contiguous.
        """

    def verify(self, block: FoundBlock) -> None:
        """After using `block.view` in place: raises LeaseExpiredError if the memory was reused
        meanwhile."""

    async def release(self) -> None:
        """Idempotent, never raises."""

    async def __aenter__(self) -> Self: ...
    async def __aexit__(self, *exc: object) -> None: ...


class StoreClient(Protocol):
    """One session with the local node. Safe to use from many tasks of one event loop.

    Every verb takes a whole batch in one round trip and ends within `deadline_s`
    (DeadlineExceededError, UnavailableError: see `kvstore.core.errors`). A restarted node is found
    again by itself: the first call after it opens a new session.
    """

    async def match(self, keys: BlockKeys, *, deadline_s: float = 1.0) -> PrefixMatch: ...

    async def reserve(
        self, keys: BlockKeys, block_bytes: int, *, deadline_s: float = 1.0
    ) -> Reservation:
        """Space for those of `keys` that are neither present nor being written; none where the tier
        is full."""

    async def acquire(self, keys: BlockKeys, *, deadline_s: float = 1.0) -> Lease:
        """Blocks on disk are brought up first; those not there in time are misses: LATE."""

    async def put(
        self, keys: BlockKeys, blocks: Sequence[memoryview], *, deadline_s: float = 1.0
    ) -> list[int]:
        """reserve, copy, commit. Returns the indices that are stored now, written or found."""

    async def get(
        self, keys: BlockKeys, into: Sequence[memoryview], *, deadline_s: float = 1.0
    ) -> dict[int, MissReason]:
        """acquire, copy, verify, release. Returns the misses; all other buffers hold verified
        bytes."""

    async def close(self) -> None: ...

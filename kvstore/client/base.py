"""The store as its users see it. `kvstore.client.aio.Client` implements it over any transport;
`kvstore.client.sync.SyncClient` is the same without `await`.

    async with await client.reserve(keys, layout.block_bytes) as reservation:
        for block in reservation.blocks:                 # only those that need writing
            block.view[:] = my_bytes[block.index]
        await reservation.commit()                       # now visible; without it nothing ever is

    async with await client.acquire(keys, deadline_s=0.05) as lease:
        for found in lease.found:
            lease.copy_into(found, my_buffer[found.index])   # or raises

Layer by layer, while the writer still computes:

    reservation.layers_ready(n)                          # writer, after layers [0, n) are written

    async with await client.acquire(keys, streaming=True) as lease:
        await lease.wait_layers(n, deadline_s=0.5)       # reader
        lease.copy_part_into(block, layout, BlockRange(layers=(0, n)), into)
        misses = await lease.confirm(deadline_s=1.0)     # before it the copies must not be used up
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, Self

from kvstore.client.blocks import FoundBlock, Prefetched, PrefixMatch, ReservedBlock
from kvstore.client.buffers import Buffer, Buffers
from kvstore.client.retention import Retention
from kvstore.core.ids import BlockKeys
from kvstore.core.layout import KVLayout
from kvstore.core.ranges import BlockRange
from kvstore.directory.base import NodeRecord
from kvstore.tiers.base import MissReason
from kvstore.wire.v1 import node_pb2

__all__ = [
    "FoundBlock",
    "Lease",
    "PrefixMatch",
    "Prefetched",
    "Reservation",
    "ReservedBlock",
    "StoreClient",
]


class Reservation(Protocol):
    """Space to write blocks that nobody sees until they are committed. One owner; not thread-safe.

    Leaving the context aborts whatever is not committed.
    """

    blocks: Sequence[ReservedBlock]

    def layers_ready(self, layers: int, block: ReservedBlock | None = None) -> None:
        """Say that the leading `layers` of `block`, or of all blocks that are left, are written and
        will not change: streaming readers on this host may copy them. Call it after the bytes are
        there; the number only grows. A commit says so of all layers.

        Without effect where the arena is not mapped: others then read after the commit. Raises
        ReservationExpiredError for a block that is not left. Costs a store to memory a block.
        """

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

    def copy_into(self, block: FoundBlock, into: Buffer) -> None:
        """Copy one block, and make sure of the copy: by its generation, and where the client was
        connected with `verify="always"` by its checksum (a block that came over a network has been
        checked on its way).

        Raises ChecksumError (and tells the node, which drops the replica) or LeaseExpiredError;
        `into` is then undefined. Raises InvalidArgumentError if `into` is too small or not
        contiguous.
        """

    def copy_part_into(
        self, block: FoundBlock, layout: KVLayout, part: BlockRange, into: Buffer
    ) -> None:
        """Gather some layers, heads and tokens of one block: `part.shape(layout)`, contiguous.

        A checksum is that of a whole block, so it does not check a part: what makes sure of the
        copy is the generation; with `verify="always"` the whole block is checked, too. Raises as
        `copy_into`, and InvalidArgumentError if `part` is outside of `layout`.
        """

    def verify(self, block: FoundBlock) -> None:
        """After using `block.view` in place: raises LeaseExpiredError if the memory was reused
        meanwhile."""

    def check(self, block: FoundBlock) -> None:
        """`verify`, and the checksum of the whole block, whatever the client was connected with.
        After it what was made of the view before is proved. Raises ChecksumError (and tells the
        node) or LeaseExpiredError. For blocks that are not pending, or confirmed."""

    def layers_ready(self, block: FoundBlock) -> int:
        """How many leading layers of `block` may be copied: at least as many as the layout has,
        unless it is pending.

        Bytes below this watermark will not change, but they count only once `confirm` found the
        block committed: a writer that fails leaves them without a block. Raises LeaseExpiredError
        if that has happened already.
        """

    async def wait_layers(self, layers: int, deadline_s: float) -> None:
        """Until `layers` leading layers of every block found may be copied.

        Polls shared memory, a few microseconds to two milliseconds apart. Raises
        DeadlineExceededError, or LeaseExpiredError if a writer gave its block up.
        """

    async def confirm(self, deadline_s: float) -> dict[int, MissReason]:
        """After copying pending blocks: wait for their commits. Returns (and adds to `misses`)
        those whose copies are not to be used, and why. From then on the others are as good as any
        other copy, and `copy_into` with `verify="always"` checks them.

        Raises DeadlineExceededError, UnavailableError: nothing pending may be trusted then.
        """

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

    async def match(
        self, keys: BlockKeys, *, remote: bool = False, deadline_s: float = 1.0
    ) -> PrefixMatch:
        """`remote`: also count blocks that only other nodes have, as far as this one knows."""

    async def reserve(
        self,
        keys: BlockKeys,
        block_bytes: int,
        *,
        retention: Sequence[Retention] = (),
        deadline_s: float = 1.0,
    ) -> Reservation:
        """Space for those of `keys` that are neither present nor being written; none where the tier
        is full, or the tenant's quota is. `retention` takes effect with the commit."""

    async def acquire(
        self,
        keys: BlockKeys,
        *,
        streaming: bool = False,
        local: bool = False,
        deadline_s: float = 1.0,
    ) -> Lease:
        """Blocks on disk and on other nodes are brought up first; those not there in time are
        misses: LATE. `local`: ask no other node. `streaming`: blocks that are being written count
        as found, see `Lease.wait_layers`."""

    async def put(
        self,
        keys: BlockKeys,
        blocks: Buffers,
        *,
        retention: Sequence[Retention] = (),
        deadline_s: float = 1.0,
    ) -> list[int]:
        """reserve, copy, commit. Returns the indices that are stored now, written or found.

        `blocks` are read where they lie: anything with the buffer protocol, numpy arrays, CPU
        tensors; a list with one for each key, or one stacked array [n, ...]. Raises
        InvalidArgumentError naming what is empty, not contiguous, or not of the keys' layout.
        """

    async def get(
        self,
        keys: BlockKeys,
        into: Buffers,
        *,
        part: BlockRange | None = None,
        deadline_s: float = 1.0,
    ) -> dict[int, MissReason]:
        """acquire, copy, verify, release. Returns the misses; all other buffers hold the blocks,
        those of the misses are undefined.

        `into` takes what `put` takes, writable. With `part` each gets that part of its block, see
        `Lease.copy_part_into`; over a network whole blocks are moved all the same.
        """

    async def prefetch(
        self, keys: BlockKeys, *, local: bool = False, deadline_s: float = 1.0
    ) -> Prefetched:
        """Start bringing blocks into the host tier, without waiting for them."""

    async def pin(
        self, keys: BlockKeys, *, ttl_s: float | None, deadline_s: float = 1.0
    ) -> dict[int, MissReason]:
        """Keep blocks in the host tier: for `ttl_s` (soft), or with None until they are unpinned or
        the node stops (hard). Pinning again changes kind and time. Returns those that could not be
        pinned. Pins belong to the tenant, not to this client."""

    async def unpin(self, keys: BlockKeys, *, deadline_s: float = 1.0) -> int:
        """Returns how many were pinned."""

    async def retain(
        self, keys: BlockKeys, retention: Sequence[Retention], *, deadline_s: float = 1.0
    ) -> int:
        """Give blocks that are here another retention; returns how many are."""

    async def remove(self, keys: BlockKeys, *, deadline_s: float = 1.0) -> int:
        """Drop blocks from every tier of this node; returns how many were here. Leased ones are
        invisible at once, their memory stays until they are released."""

    async def clear(self, *, deadline_s: float = 5.0) -> int:
        """Drop all blocks of this tenant; returns how many."""

    async def statistics(self, *, deadline_s: float = 1.0) -> node_pb2.StatisticsResponse:
        """What the node tells of itself, after all that this client gave back."""

    async def describe(self, *, deadline_s: float = 1.0) -> NodeRecord:
        """Who the node is, and where it can be reached."""

    async def close(self) -> None:
        """Ends the session, with all that it holds. Idempotent."""

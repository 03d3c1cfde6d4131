"""The store's client for code that blocks: the verbs of `kvstore.client.aio.Client` without
`await`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from kvstore.client import aio, lease, reservation
from kvstore.client.base import FoundBlock, PrefixMatch, ReservedBlock
from kvstore.client.loop_thread import LoopThread
from kvstore.core.ids import BlockKeys
from kvstore.core.layout import KVLayout
from kvstore.tiers.base import MissReason
from kvstore.wire.v1 import node_pb2


class SyncReservation:
    """Space to write blocks. Leaving the context aborts whatever is not committed."""

    def __init__(self, inner: reservation.Reservation, loop: LoopThread) -> None:
        self.blocks = inner.blocks
        self._inner = inner
        self._loop = loop

    def commit(self, blocks: Sequence[ReservedBlock] | None = None) -> None:
        """Raises ReservationExpiredError: nothing of this call became visible."""
        self._loop.run(self._inner.commit(blocks))

    def abort(self) -> None:
        self._loop.run(self._inner.abort())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.abort()


class SyncLease:
    """The right to read blocks. `copy_into` and `verify` run on the calling thread."""

    def __init__(self, inner: lease.Lease, loop: LoopThread) -> None:
        self.found = inner.found
        self.misses = inner.misses
        self._inner = inner
        self._loop = loop

    @property
    def prefix_length(self) -> int:
        return self._inner.prefix_length

    def copy_into(self, block: FoundBlock, into: memoryview) -> None:
        """Raises ChecksumError or LeaseExpiredError; `into` is then undefined."""
        self._inner.copy_into(block, into)

    def verify(self, block: FoundBlock) -> None:
        """After using `block.view` in place. Raises LeaseExpiredError."""
        self._inner.verify(block)

    def release(self) -> None:
        self._loop.run(self._inner.release())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()


class SyncClient:
    """One session with the local node, for many threads; its event loop has a thread of its own.

    Verbs, deadlines and errors are those of `kvstore.client.base.StoreClient`. Close it, or use it
    as a context manager, to give the thread and the session back.
    """

    def __init__(self, inner: aio.Client, loop: LoopThread) -> None:
        """Use `connect`, or `kvstore.open` for a store inside this process."""
        self._inner = inner
        self._loop = loop

    @classmethod
    def connect(
        cls,
        endpoint: str,
        *,
        client_name: str = "client",
        layouts: Sequence[KVLayout] = (),
        deadline_s: float = 5.0,
    ) -> Self:
        """See `Client.connect`."""
        loop = LoopThread("kvstore-client-loop")
        connecting = aio.Client.connect(
            endpoint, client_name=client_name, layouts=layouts, deadline_s=deadline_s
        )
        try:
            return cls(loop.run(connecting), loop)
        except BaseException:
            loop.stop()
            raise

    def match(self, keys: BlockKeys, *, deadline_s: float = 1.0) -> PrefixMatch:
        return self._loop.run(self._inner.match(keys, deadline_s=deadline_s))

    def reserve(
        self, keys: BlockKeys, block_bytes: int, *, deadline_s: float = 1.0
    ) -> SyncReservation:
        reserving = self._inner.reserve(keys, block_bytes, deadline_s=deadline_s)
        return SyncReservation(self._loop.run(reserving), self._loop)

    def acquire(self, keys: BlockKeys, *, deadline_s: float = 1.0) -> SyncLease:
        acquiring = self._inner.acquire(keys, deadline_s=deadline_s)
        return SyncLease(self._loop.run(acquiring), self._loop)

    def put(
        self, keys: BlockKeys, blocks: Sequence[memoryview], *, deadline_s: float = 1.0
    ) -> list[int]:
        return self._loop.run(self._inner.put(keys, blocks, deadline_s=deadline_s))

    def get(
        self, keys: BlockKeys, into: Sequence[memoryview], *, deadline_s: float = 1.0
    ) -> dict[int, MissReason]:
        return self._loop.run(self._inner.get(keys, into, deadline_s=deadline_s))

    def statistics(self, *, deadline_s: float = 1.0) -> node_pb2.StatisticsResponse:
        return self._loop.run(self._inner.statistics(deadline_s=deadline_s))

    def close(self) -> None:
        """Idempotent."""
        if self._loop.running:
            self._loop.run(self._inner.close())
            self._loop.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

"""The store's client for code that blocks: the verbs of `kvstore.client.aio.Client` without
`await`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from kvstore.client import aio, lease, reservation, sharding
from kvstore.client.blocks import FoundBlock, Prefetched, PrefixMatch, ReservedBlock
from kvstore.client.buffers import Buffer, Buffers
from kvstore.client.loop_thread import LoopThread
from kvstore.client.retention import Retention
from kvstore.client.sharding import ShardedKeys
from kvstore.client.verification import Verify
from kvstore.core.ids import BlockKeys
from kvstore.core.layout import HeadRange, KVLayout
from kvstore.core.ranges import BlockRange
from kvstore.directory.base import NodeRecord
from kvstore.tiers.base import MissReason
from kvstore.transports.security.config import ClientSecurity
from kvstore.wire.v1 import node_pb2


class SyncReservation:
    """Space to write blocks. Leaving the context aborts whatever is not committed."""

    def __init__(self, inner: reservation.Reservation, loop: LoopThread) -> None:
        self.blocks = inner.blocks
        self._inner = inner
        self._loop = loop

    def layers_ready(self, layers: int, block: ReservedBlock | None = None) -> None:
        """See `kvstore.client.base.Reservation`."""
        self._inner.layers_ready(layers, block)

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
    """The right to read blocks; see `kvstore.client.base.Lease`. Copies, `verify` and
    `layers_ready` run on the calling thread."""

    def __init__(self, inner: lease.Lease, loop: LoopThread) -> None:
        self.found = inner.found
        self.misses = inner.misses
        self._inner = inner
        self._loop = loop

    @property
    def prefix_length(self) -> int:
        return self._inner.prefix_length

    def copy_into(self, block: FoundBlock, into: Buffer) -> None:
        """Raises ChecksumError or LeaseExpiredError; `into` is then undefined."""
        self._inner.copy_into(block, into)

    def copy_part_into(
        self, block: FoundBlock, layout: KVLayout, part: BlockRange, into: Buffer
    ) -> None:
        """Raises as `copy_into`."""
        self._inner.copy_part_into(block, layout, part, into)

    def verify(self, block: FoundBlock) -> None:
        """After using `block.view` in place. Raises LeaseExpiredError."""
        self._inner.verify(block)

    def check(self, block: FoundBlock) -> None:
        """The same, and the checksum. Raises ChecksumError or LeaseExpiredError."""
        self._inner.check(block)

    def layers_ready(self, block: FoundBlock) -> int:
        return self._inner.layers_ready(block)

    def wait_layers(self, layers: int, deadline_s: float) -> None:
        """Raises DeadlineExceededError or LeaseExpiredError."""
        self._loop.run(self._inner.wait_layers(layers, deadline_s))

    def confirm(self, deadline_s: float) -> dict[int, MissReason]:
        return self._loop.run(self._inner.confirm(deadline_s))

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
        tenant: str = "",
        verify: Verify = "transfers",
        shared_memory: bool = True,
        security: ClientSecurity | None = None,
        deadline_s: float = 5.0,
    ) -> Self:
        """See `Client.connect`."""
        loop = LoopThread("kvstore-client-loop")
        connecting = aio.Client.connect(
            endpoint,
            client_name=client_name,
            layouts=layouts,
            tenant=tenant,
            verify=verify,
            shared_memory=shared_memory,
            security=security,
            deadline_s=deadline_s,
        )
        try:
            return cls(loop.run(connecting), loop)
        except BaseException:
            loop.stop()
            raise

    def match(
        self, keys: BlockKeys, *, remote: bool = False, deadline_s: float = 1.0
    ) -> PrefixMatch:
        return self._loop.run(self._inner.match(keys, remote=remote, deadline_s=deadline_s))

    def reserve(
        self,
        keys: BlockKeys,
        block_bytes: int,
        *,
        retention: Sequence[Retention] = (),
        deadline_s: float = 1.0,
    ) -> SyncReservation:
        reserving = self._inner.reserve(
            keys, block_bytes, retention=retention, deadline_s=deadline_s
        )
        return SyncReservation(self._loop.run(reserving), self._loop)

    def acquire(
        self,
        keys: BlockKeys,
        *,
        streaming: bool = False,
        local: bool = False,
        deadline_s: float = 1.0,
    ) -> SyncLease:
        acquiring = self._inner.acquire(
            keys, streaming=streaming, local=local, deadline_s=deadline_s
        )
        return SyncLease(self._loop.run(acquiring), self._loop)

    def put(
        self,
        keys: BlockKeys,
        blocks: Buffers,
        *,
        retention: Sequence[Retention] = (),
        deadline_s: float = 1.0,
    ) -> list[int]:
        return self._loop.run(
            self._inner.put(keys, blocks, retention=retention, deadline_s=deadline_s)
        )

    def get(
        self,
        keys: BlockKeys,
        into: Buffers,
        *,
        part: BlockRange | None = None,
        deadline_s: float = 1.0,
    ) -> dict[int, MissReason]:
        return self._loop.run(self._inner.get(keys, into, part=part, deadline_s=deadline_s))

    def put_heads(
        self, keys: ShardedKeys, heads: HeadRange, blocks: Buffers, *, deadline_s: float = 1.0
    ) -> list[int]:
        """See `kvstore.client.sharding.put_heads`."""
        return self._loop.run(
            sharding.put_heads(self._inner, keys, heads, blocks, deadline_s=deadline_s)
        )

    def get_heads(
        self, keys: ShardedKeys, heads: HeadRange, into: Buffers, *, deadline_s: float = 1.0
    ) -> dict[int, MissReason]:
        """See `kvstore.client.sharding.get_heads`."""
        return self._loop.run(
            sharding.get_heads(self._inner, keys, heads, into, deadline_s=deadline_s)
        )

    def prefetch(
        self, keys: BlockKeys, *, local: bool = False, deadline_s: float = 1.0
    ) -> Prefetched:
        return self._loop.run(self._inner.prefetch(keys, local=local, deadline_s=deadline_s))

    def pin(
        self, keys: BlockKeys, *, ttl_s: float | None, deadline_s: float = 1.0
    ) -> dict[int, MissReason]:
        return self._loop.run(self._inner.pin(keys, ttl_s=ttl_s, deadline_s=deadline_s))

    def unpin(self, keys: BlockKeys, *, deadline_s: float = 1.0) -> int:
        return self._loop.run(self._inner.unpin(keys, deadline_s=deadline_s))

    def retain(
        self, keys: BlockKeys, retention: Sequence[Retention], *, deadline_s: float = 1.0
    ) -> int:
        return self._loop.run(self._inner.retain(keys, retention, deadline_s=deadline_s))

    def remove(self, keys: BlockKeys, *, deadline_s: float = 1.0) -> int:
        return self._loop.run(self._inner.remove(keys, deadline_s=deadline_s))

    def clear(self, *, deadline_s: float = 5.0) -> int:
        return self._loop.run(self._inner.clear(deadline_s=deadline_s))

    def statistics(self, *, deadline_s: float = 1.0) -> node_pb2.StatisticsResponse:
        return self._loop.run(self._inner.statistics(deadline_s=deadline_s))

    def describe(self, *, deadline_s: float = 1.0) -> NodeRecord:
        return self._loop.run(self._inner.describe(deadline_s=deadline_s))

    def close(self) -> None:
        """Idempotent."""
        if self._loop.running:
            self._loop.run(self._inner.close())
            self._loop.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

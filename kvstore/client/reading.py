"""Verbs that read: acquire and get."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from kvstore.client.acquiring import lease_of
from kvstore.client.blocks import FoundBlock
from kvstore.client.buffers import Buffers, Expected, writable
from kvstore.client.connection import Connection, Session
from kvstore.client.deadline import Deadline
from kvstore.client.fencing import LeasedFrom
from kvstore.client.lease import Lease
from kvstore.client.messages import keys_message, wait_ms
from kvstore.client.places import Places
from kvstore.client.releases import Releases
from kvstore.client.verification import Verify
from kvstore.client.work import run_shared, run_sized
from kvstore.core.errors import InvalidArgumentError
from kvstore.core.ids import BlockKeys, LayoutFingerprint
from kvstore.core.layout import KVLayout
from kvstore.core.ranges import BlockRange
from kvstore.tiers.base import MissReason
from kvstore.wire.v1 import node_pb2

A = TypeVar("A")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What a get copies where."""

    targets: Sequence[memoryview]
    """Flat bytes for each key."""
    layout: KVLayout | None
    """Of the blocks; known if a part of them is wanted."""
    part: BlockRange | None

    def copy_out(self, lease: Lease, blocks: Iterator[FoundBlock]) -> dict[int, MissReason]:
        layout, part = self.layout, self.part
        if layout is None or part is None:
            return lease.copy_all_into(blocks, self.targets)
        return lease.copy_each(
            blocks,
            lambda block: lease.copy_part_into(block, layout, part, self.targets[block.index]),
        )


class Reading:
    """Part of `kvstore.client.aio.Client`; see the protocol."""

    _connection: Connection
    _layouts: Mapping[LayoutFingerprint, KVLayout]
    _places: Places
    _releases: Releases
    _verify: Verify

    async def acquire(
        self,
        keys: BlockKeys,
        *,
        streaming: bool = False,
        local: bool = False,
        deadline_s: float = 1.0,
    ) -> Lease:
        request = node_pb2.AcquireRequest(
            keys=keys_message(keys), wait_ms=wait_ms(deadline_s), streaming=streaming, local=local
        )
        return await self._acquire(request, None, Deadline(deadline_s))

    async def _acquire(
        self,
        request: node_pb2.AcquireRequest,
        into: Sequence[memoryview] | None,
        deadline: Deadline,
    ) -> Lease:
        response, session = await self._call_acquire(request, deadline)
        if MissReason.NO_SPACE in response.miss_reasons and self._releases.waiting:
            # What is in the way may be what this client has done with and not given back yet.
            self._releases.add(session.channel, session.id, response.lease_id)
            await self._releases.arrived()
            response, session = await self._call_acquire(request, deadline)
        origin = LeasedFrom(
            session.channel, session, self._releases, self._verify, response.lease_id
        )
        try:
            return await lease_of(origin, response, into, deadline)
        except BaseException:  # also a call that was cancelled must not keep its lease
            self._releases.add(session.channel, session.id, response.lease_id)
            raise

    async def _call_acquire(
        self, request: node_pb2.AcquireRequest, deadline: Deadline
    ) -> tuple[node_pb2.AcquireResponse, Session]:
        return await self._connection.call("Acquire", request, node_pb2.AcquireResponse, deadline)

    async def get(
        self,
        keys: BlockKeys,
        into: Buffers,
        *,
        part: BlockRange | None = None,
        deadline_s: float = 1.0,
    ) -> dict[int, MissReason]:
        layout = self._layout_of(keys.layout) if part else self._layouts.get(keys.layout)
        targets = writable("into", into, len(keys), _expected(layout, part))
        wanted = _Wanted(targets, layout, part)
        deadline = Deadline(deadline_s)
        if await self._get_again(keys, wanted, deadline):
            return {}
        request = node_pb2.AcquireRequest(keys=keys_message(keys), wait_ms=wait_ms(deadline_s))
        arrive_in = None if part else targets
        async with await self._acquire(request, arrive_in, deadline) as lease:
            if not lease.mapped and not part:  # they came where they belong
                return lease.misses
            bad = await self._copy_out(lease, wanted)
            if not bad:
                self._places.remember(lease, keys)
        return lease.misses | bad

    async def touch(self, keys: BlockKeys) -> None:
        """Tell the node that blocks were used, as if they had been read now."""
        async with await self.acquire(keys, local=True):
            pass

    async def run_sized(self, size_bytes: int, work: Callable[[A], T], argument: A) -> T:
        """Run copies: on a thread of the client's if there are so many bytes that they would hold
        up the event loop."""
        return await run_sized(self._connection.executor, size_bytes, work, argument)

    async def run_shared(
        self, size_bytes: int, work: Callable[[Iterator[A]], Mapping[int, T]], items: Sequence[A]
    ) -> dict[int, T]:
        """The same of many items, which several threads may share; what `work` returns is put
        together."""
        parts = await run_shared(self._connection.executor, size_bytes, work, items)
        return {index: result for part in parts for index, result in part.items()}

    async def _get_again(self, keys: BlockKeys, wanted: _Wanted, deadline: Deadline) -> bool:
        """Whether all blocks are where they were read before; then they have been copied."""
        session = await self._connection.session(deadline)
        origin = LeasedFrom(session.channel, session, self._releases, self._verify, 0)
        known = self._places.find(origin, keys)
        if known is None:
            return False
        if await self._copy_out(known, wanted):
            self._places.forget(keys)
            return False
        self._places.used(keys)
        return True

    async def _copy_out(self, lease: Lease, wanted: _Wanted) -> dict[int, MissReason]:
        size_bytes = sum(len(block.view) for block in lease.found)
        return await self.run_shared(size_bytes, partial(wanted.copy_out, lease), lease.found)

    def _layout_of(self, fingerprint: LayoutFingerprint) -> KVLayout:
        layout = self._layouts.get(fingerprint)
        if layout is None:
            raise InvalidArgumentError(
                f"part: the layout {fingerprint.hex()} of the keys is not known here; connect with "
                "it among `layouts`"
            )
        return layout


def _expected(layout: KVLayout | None, part: BlockRange | None) -> Expected | None:
    if layout is None:
        return None
    return Expected(layout.dtype, part.shape(layout) if part else layout.shape)

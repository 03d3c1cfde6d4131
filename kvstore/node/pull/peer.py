"""One other node: how to reach it, how it does, and whether to ask it at all."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from kvstore.client.deadline import Deadline
from kvstore.core.errors import (
    DeadlineExceededError,
    KVStoreError,
    UnavailableError,
)
from kvstore.core.ids import BlockKeys, NodeId
from kvstore.core.ports import Clock
from kvstore.directory.base import NodeRecord
from kvstore.node.pull.breaker import BreakerState, CircuitBreaker
from kvstore.node.pull.remote import RemoteBlock, RemoteLease, RemoteNode, TransportName
from kvstore.tiers.base import MissReason
from kvstore.transports.security.keys import NO_CLIENT_KEYS, ClientKeys

_LOG = logging.getLogger(__name__)

UNKNOWN_BYTES_PER_S = 1e9
"""What a peer is taken to deliver before it has: enough that each is tried."""
NEWEST_SHARE = 0.2
"""Weight of the newest read in the measured bandwidth."""
FAIR_S = 0.1
"""A peer that had less time than this is not to blame for being late."""
TYPICAL_BYTES = 1 << 20
"""A pull is taken to ask for so much when peers are compared."""


@dataclass(frozen=True, slots=True)
class PeerStatistics:
    """A frozen snapshot; `PeerStatistics` in node.proto."""

    node_id: NodeId
    transport: TransportName | None
    """None while there is no connection."""
    breaker: BreakerState
    bytes_pulled: int
    blocks_pulled: int
    failures: int
    bytes_per_s: float
    """Of recent reads; 0 before the first."""


@dataclass(frozen=True, slots=True)
class PullerIdentity:
    """What a node tells its peers, and compares with what they tell, to find the best way."""

    node_id: NodeId
    host_id: str
    """See `NodeRecord.host_id`."""
    keys: ClientKeys = NO_CLIENT_KEYS
    """What it shows to them."""


class Peer:
    """A peer in one of its lives. Connects at the first call, by the best transport that works;
    `close` ends it. Owned by the node's event loop.

    Whoever asks it for something does so within `judged`, which tells the breaker how it went.
    """

    def __init__(self, record: NodeRecord, own: PullerIdentity, clock: Clock) -> None:
        self.record = record
        self.same_host = record.host_id == own.host_id
        self.breaker = CircuitBreaker(clock)
        self._own = own
        self._clock = clock
        self._remote: RemoteNode | None = None
        self._opening = asyncio.Lock()
        self._closed = False
        self._bytes_in_flight = 0
        self._bytes_pulled = 0
        self._blocks_pulled = 0
        self.num_failures = 0
        self.num_corrupt = 0
        """Blocks whose bytes were not those of their checksum when they came."""
        self._bytes_per_s = 0.0

    @property
    def _transport(self) -> TransportName | None:
        return self._remote.transport if self._remote else None

    @property
    def expected_s(self) -> float:
        """How long a typical pull would take from here, behind those that are under way."""
        bytes_per_s = self._bytes_per_s or UNKNOWN_BYTES_PER_S
        return (self._bytes_in_flight + TYPICAL_BYTES) / bytes_per_s

    @asynccontextmanager
    async def judged(self, deadline: Deadline) -> AsyncIterator[None]:
        """For the time of one pull; the breaker has admitted it."""
        fair = deadline.left_s >= FAIR_S
        try:
            yield
        except DeadlineExceededError:
            self.num_failures += 1
            if fair:
                self.breaker.failed(timed_out=True)
            else:
                self.breaker.given_up()
            raise
        except KVStoreError:
            self.num_failures += 1
            self.breaker.failed(timed_out=False)
            raise
        except BaseException:  # cancelled, or a defect of ours: the peer is not to blame
            self.breaker.given_up()
            raise
        self.breaker.succeeded()

    async def acquire(self, keys: BlockKeys, deadline: Deadline) -> RemoteLease:
        """Raises DeadlineExceededError also where nobody answered the call to connect: that, too,
        cost a whole deadline."""
        try:
            remote = await self._connected(deadline)
            return await remote.acquire(keys, deadline)
        except UnavailableError:
            deadline.remaining_s()
            raise

    async def read(
        self,
        lease: RemoteLease,
        blocks: Sequence[RemoteBlock],
        into: Sequence[memoryview],
        deadline: Deadline,
    ) -> list[MissReason | None]:
        """See `RemoteNode.read`. Raises a KVStoreError if not one of the blocks came through."""
        if (remote := self._remote) is None:
            raise UnavailableError(f"node {self.record.node_id} left during the pull")
        size = sum(view.nbytes for view in into)
        began = self._clock()
        self._bytes_in_flight += size
        try:
            misses = await remote.read(lease, blocks, into, deadline)
        finally:
            self._bytes_in_flight -= size
        _check_any_came(misses, self.record)
        self._count(misses, into, self._clock() - began)
        return misses

    async def release(self, lease: RemoteLease, corrupt: Sequence[RemoteBlock]) -> None:
        if self._remote is not None:
            await self._remote.release(lease, corrupt)

    async def close(self) -> None:
        """Idempotent, and bounded. Calls under way fail."""
        self._closed = True
        remote, self._remote = self._remote, None
        if remote is not None:
            await remote.close()

    def statistics(self) -> PeerStatistics:
        return PeerStatistics(
            self.record.node_id,
            self._transport,
            self.breaker.state,
            self._bytes_pulled,
            self._blocks_pulled,
            self.num_failures,
            self._bytes_per_s,
        )

    def _count(
        self, misses: Sequence[MissReason | None], into: Sequence[memoryview], took_s: float
    ) -> None:
        sizes = [v.nbytes for v, miss in zip(into, misses, strict=True) if miss is None]
        self.num_corrupt += sum(miss is MissReason.CORRUPT for miss in misses)
        self._blocks_pulled += len(sizes)
        self._bytes_pulled += sum(sizes)
        if took_s > 0:
            newest = sum(sizes) / took_s
            before = self._bytes_per_s or newest
            self._bytes_per_s = before + NEWEST_SHARE * (newest - before)

    async def _connected(self, deadline: Deadline) -> RemoteNode:
        try:
            async with asyncio.timeout(deadline.remaining_s()), self._opening:
                if self._closed:
                    raise UnavailableError(f"node {self.record.node_id} left; read elsewhere")
                if self._remote is None:
                    self._remote = await self._connect(deadline)
                return self._remote
        except TimeoutError as error:
            if isinstance(error, KVStoreError):
                raise
            raise DeadlineExceededError(
                f"no connection to node {self.record.node_id} within the deadline"
            ) from error

    async def _connect(self, deadline: Deadline) -> RemoteNode:
        """Try each way that the peer listens on; the last failure is the one raised."""
        failure: KVStoreError = UnavailableError(
            f"node {self.record.node_id} tells no address that can be reached from here"
        )
        endpoints = self._endpoints()
        for number, endpoint in enumerate(endpoints):
            share = deadline.remaining_s() / (len(endpoints) - number)
            try:
                remote = await self._connect_to(endpoint, Deadline(share))
            except KVStoreError as error:
                failure = error
                continue
            _LOG.info(
                "blocks of node %s come by %s (%s)",
                self.record.node_id,
                remote.transport,
                endpoint,
            )
            return remote
        raise failure

    async def _connect_to(self, endpoint: str, deadline: Deadline) -> RemoteNode:
        name = f"node {self._own.node_id}"
        return await RemoteNode.connect(
            endpoint,
            name,
            keys=self._own.keys,
            shared_memory=self.same_host,
            deadline=deadline,
        )

    def _endpoints(self) -> list[str]:
        endpoints = []
        if self.record.zmq_endpoint and (
            self.same_host or not self.record.zmq_endpoint.startswith("ipc:")
        ):
            endpoints.append(self.record.zmq_endpoint)
        if self.record.grpc_address:
            endpoints.append(f"grpc://{self.record.grpc_address}")
        return endpoints

    def __repr__(self) -> str:
        return f"Peer({self.record.node_id!r}, {self._transport}, {self.breaker.state})"


def _check_any_came(misses: Sequence[MissReason | None], record: NodeRecord) -> None:
    """A read that brought nothing through is a failure of the peer, however it is told."""
    if not misses or not all(m in (MissReason.LATE, MissReason.FAILED) for m in misses):
        return
    if MissReason.LATE in misses:
        raise DeadlineExceededError(f"node {record.node_id} sent none of {len(misses)} blocks")
    raise UnavailableError(f"node {record.node_id} failed to send {len(misses)} blocks")

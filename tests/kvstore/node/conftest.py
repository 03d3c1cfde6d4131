"""A store without its network, on a clock that the test moves."""

from __future__ import annotations

import hashlib
import os
import threading
from contextlib import asynccontextmanager

import pytest

from kvstore.core.checksum import checksum
from kvstore.core.ids import BlockHash, BlockKeys, LayoutFingerprint
from kvstore.events.null import NullEventSink
from kvstore.node.config import NodeConfig
from kvstore.node.store import LocalStore
from kvstore.node.writing import CommittedBlock
from kvstore.testing.clock import ManualClock
from kvstore.tiers.base import TierKind
from kvstore.transports.methods import request_type
from kvstore.transports.process import this_process
from kvstore.wire.v1 import node_pb2

BLOCK_BYTES = 64 << 10
TTL_S = 10.0
SERVICE = node_pb2.DESCRIPTOR.services_by_name["NodeService"]


def make_keys(*names: object) -> BlockKeys:
    hashes = [BlockHash(hashlib.sha256(str(name).encode()).digest()) for name in names]
    return BlockKeys(LayoutFingerprint(b"test layout 0123"), hashes)


def content(key: bytes, length: int = BLOCK_BYTES) -> bytes:
    """What the block of that hash holds."""
    return (key * (length // len(key) + 1))[:length]


def wire(keys: BlockKeys):
    """The same keys in a message."""
    return {"layout_fingerprint": keys.layout, "block_hashes": b"".join(keys.hashes)}


class RecordingSink(NullEventSink):
    """Keeps what is announced, as a subscriber would."""

    def __init__(self):
        self.held = {TierKind.HOST: set(), TierKind.DISK: set()}

    def stored(self, tier, keys):
        self.held[tier].update(keys)

    def removed(self, tier, keys):
        self.held[tier].difference_update(keys)


class Gate:
    """Holds up calls of a tier's method until opened; counts them."""

    def __init__(self, tier, name):
        self._method = getattr(tier, name)
        self.open = threading.Event()
        self.num_calls = self.num_passed = 0
        setattr(tier, name, self)

    def __call__(self, *args):
        self.num_calls += 1
        assert self.open.wait(20)
        self.num_passed += 1
        return self._method(*args)


class Harness:
    """One store and short verbs over it."""

    def __init__(self, config: NodeConfig):
        self.clock = ManualClock()
        self.sink = RecordingSink()
        self.store = LocalStore(config, self.sink, boot_id=1, clock=self.clock)
        self.manager = self.store.manager

    @property
    def host(self):
        return self.store._host

    @property
    def disk(self):
        return self.store._disk

    def open(self, *, local=False):
        return self.manager.open_session("test", this_process() if local else None, []).id

    def reserve(self, session, keys, block_bytes=BLOCK_BYTES):
        return self.manager.reserve(session, keys, block_bytes, 0)

    def fill(self, session, reservation, indices=None):
        """Write and commit."""
        blocks = []
        for i in range(len(reservation.keys)) if indices is None else indices:
            data = content(reservation.keys[i].hash, reservation.block_bytes)
            self.manager.bulk.land(session, reservation.id, i, 0, memoryview(data))
            blocks.append(CommittedBlock(i, len(data), checksum(data)))
        self.manager.commit(session, reservation.id, blocks)

    def put(self, session, keys):
        reservation, outcomes = self.reserve(session, keys)
        if reservation.keys:
            self.fill(session, reservation)
        return outcomes

    async def acquire(self, session, keys, wait_s=5.0):
        return await self.manager.acquire(session, keys, wait_s)

    def read(self, session, lease, index):
        loan = self.manager.bulk.lend(session, lease.id, [index])
        try:
            return bytes(loan.views[0])
        finally:
            loan.give_back()

    async def call(self, method, **fields):
        """As a client calls it, through all checks of the service."""
        request = request_type(SERVICE.methods_by_name[method])(**fields)
        return await self.store.service.handlers()[method](request)

    async def flush(self):
        queue = self.manager._demotion.queue
        while queue._task is not None:
            await queue._task


@pytest.fixture
def make_store(tmp_path):
    """`async with make_store(host=…, disk=…) as harness`."""

    @asynccontextmanager
    async def make(host=4 << 20, disk=0, **settings):
        arena = tmp_path / f"arena-{os.urandom(4).hex()}"
        arena.mkdir()
        config = NodeConfig(
            host=host,
            disk=disk,
            disk_path=tmp_path / "disk" if disk else None,
            arena_folder=arena,
            **settings,
        )
        harness = Harness(config)
        await harness.store.start()
        harness.store._ticker.cancel()  # the test ticks
        try:
            yield harness
        finally:
            await harness.store.stop()
            assert not list(arena.glob("*")), "the arena file must be gone"

    return make

"""What every bulk transport does, with a real node. Subclass it, say where the node serves it and
how to make a channel, and collect it with pytest (asyncio mode "auto")."""

from __future__ import annotations

import asyncio
import socket
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from kvstore.core.errors import (
    ChecksumError,
    DeadlineExceededError,
    InvalidArgumentError,
    KVStoreError,
    LeaseExpiredError,
    ReservationExpiredError,
    SessionExpiredError,
)
from kvstore.events.null import NullEventSink
from kvstore.node.config import NodeConfig
from kvstore.node.daemon import Node
from kvstore.testing.bulk_remote import LONG_S, Remote, keys_of, noise, until
from kvstore.testing.node_process import NodeProcess, node_process
from kvstore.testing.transport_conformance import error_of
from kvstore.tiers.base import MissReason
from kvstore.transports.base import BulkChannel, BulkRead, BulkWrite

LENGTHS = (1, 4_095, 4_096, 64 << 10, (1 << 20) + 1, 2 << 20, (16 << 20) + 3, 33 << 20)
LARGE = 24 << 20
TTL_MS = 400


class BulkConformance(ABC):
    """Control verbs go over ZeroMQ; the channel under test carries bytes alone."""

    setting: str
    """Of a node's configuration: where it serves this transport."""
    scheme: str
    """What comes before host:port in addresses of this transport."""

    @abstractmethod
    def address(self, node: Node | NodeProcess) -> str:
        """Where a started node serves this transport."""

    @abstractmethod
    def make_channel(self, address: str) -> BulkChannel: ...

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path

    @asynccontextmanager
    async def node(self, **settings: object) -> AsyncIterator[Node]:
        values = {"host": 32 << 20, "arena_folder": self.folder} | settings
        node = Node(NodeConfig.model_validate(values), sink=NullEventSink())
        await node.start()
        try:
            yield node
        finally:
            await node.stop()

    @asynccontextmanager
    async def vanishing(self, node: Node | NodeProcess) -> AsyncIterator[Remote]:
        """One that does not say good-bye."""
        remote = await Remote.open(node.zmq_endpoint, self.make_channel(self.address(node)))
        try:
            yield remote
        finally:
            await remote.vanish()

    @asynccontextmanager
    async def remote(self, node: Node) -> AsyncIterator[Remote]:
        async with self.vanishing(node) as remote:
            yield remote
            await remote.close_session()

    @pytest.mark.parametrize("length", LENGTHS)
    async def test_blocks_of_any_length_come_back_byte_for_byte(self, length: int) -> None:
        blocks = [noise(seed, length) for seed in range(3)]
        keys = keys_of(*range(3))
        async with self.node(host=1 << 30) as node, self.remote(node) as remote:
            await remote.put(keys, blocks)
            async with remote.leased(keys) as lease:
                assert await remote.read(lease) == [None] * 3
                assert [bytes(view) for view in lease.into] == blocks

    async def test_many_calls_share_the_channel(self) -> None:
        blocks = [noise(seed, 300_000 + seed) for seed in range(40)]

        async def there_and_back(remote: Remote, number: int) -> bool:
            await remote.put(keys_of(number), [blocks[number]])
            async with remote.leased(keys_of(number)) as lease:
                outcomes = await remote.read(lease)
                return outcomes == [None] and bytes(lease.into[0]) == blocks[number]

        async with self.node() as node, self.remote(node) as remote:
            calls = [there_and_back(remote, number) for number in range(len(blocks))]
            assert all(await asyncio.gather(*calls))

    async def test_small_blocks_come_in_batches(self) -> None:
        blocks = [noise(seed, 1_000) for seed in range(2_000)]
        keys = keys_of(*range(2_000))
        async with self.node() as node, self.remote(node) as remote:
            await remote.put(keys, blocks)
            async with remote.leased(keys) as lease:
                assert await remote.read(lease) == [None] * 2_000
                assert [bytes(view) for view in lease.into] == blocks

    async def test_any_blocks_of_a_lease_in_any_order(self) -> None:
        blocks = [noise(seed, 5_000) for seed in range(6)]
        async with self.node() as node, self.remote(node) as remote:
            await remote.put(keys_of(*range(6)), blocks)
            async with remote.leased(keys_of(*range(6))) as lease:
                assert await remote.read(lease, [4, 1]) == [None, None]
                assert [bytes(lease.into[i]) for i in (1, 4)] == [blocks[1], blocks[4]]
                assert not any(lease.into[0])
                assert await remote.read(lease, []) == []

    async def test_bytes_that_went_bad_are_corrupt_and_the_others_are_not(self) -> None:
        blocks = [bytes([seed]) * 100_000 for seed in range(3)]
        async with self.node() as node, self.remote(node) as remote:
            await remote.put(keys_of(*range(3)), blocks)
            async with remote.leased(keys_of(*range(3))) as lease:
                loan = node.store.manager.bulk.lend(remote.session_id, lease.id, [1])
                loan.views[0][777] ^= 1
                loan.give_back()
                assert await remote.read(lease) == [None, MissReason.CORRUPT, None]

    async def test_a_commit_of_other_bytes_than_came_is_refused_and_can_be_made_good(self) -> None:
        good, keys = noise(1, 200_000), keys_of("a")
        async with self.node() as node, self.remote(node) as remote:
            reservation = await remote.reserve(keys, len(good))
            bad = good[:100_000] + b"x" + good[100_001:]
            await remote.write(reservation, [bad])
            with pytest.raises(ChecksumError):
                await remote.commit(reservation, [good])
            assert await remote.num_matched(keys) == 0
            await remote.write(reservation, [good])
            await remote.commit(reservation, [good])
            assert await remote.num_matched(keys) == 1

    async def test_a_commit_of_bytes_that_never_came_is_refused(self) -> None:
        async with self.node() as node, self.remote(node) as remote:
            reservation = await remote.reserve(keys_of("a"), 1_000)
            with pytest.raises(ChecksumError):
                await remote.commit(reservation, [bytes(1_000)])
            await remote.write(reservation, [bytes(999)])
            with pytest.raises(ChecksumError):
                await remote.commit(reservation, [bytes(1_000)])
            assert await remote.num_matched(keys_of("a")) == 0

    async def test_a_released_lease_is_an_error_of_the_whole_call(self) -> None:
        async with self.node() as node, self.remote(node) as remote:
            await remote.put(keys_of("a"), [bytes(1_000)])
            async with remote.leased(keys_of("a")) as lease:
                pass
            assert type(await error_of(remote.read(lease))) is LeaseExpiredError

    async def test_an_expired_lease_is_an_error_of_the_whole_call(self) -> None:
        async with self.node(lease_ttl_ms=TTL_MS) as node, self.remote(node) as remote:
            await remote.put(keys_of("a"), [bytes(1_000)])
            lease = await remote.acquire(keys_of("a"))
            await asyncio.sleep(TTL_MS / 1000)
            error = await error_of(remote.read(lease))
            assert type(error) in (LeaseExpiredError, SessionExpiredError)
            assert not any(lease.into[0])

    async def test_nothing_lands_in_a_reservation_that_ended(self) -> None:
        async with self.node() as node, self.remote(node) as remote:
            reservation = await remote.reserve(keys_of("a"), 100_000)
            await remote.abort(reservation)
            await remote.put(keys_of("b"), [bytes(100_000)])  # gets the slot
            error = await error_of(remote.write(reservation, [b"x" * 100_000]))
            assert type(error) is ReservationExpiredError
            async with remote.leased(keys_of("b")) as lease:
                assert await remote.read(lease) == [None]

    async def test_nothing_lands_in_a_committed_block(self) -> None:
        async with self.node() as node, self.remote(node) as remote:
            reservation = await remote.reserve(keys_of("a", "b"), 100_000)
            blocks = [bytes(100_000), bytes(100_000)]
            await remote.write(reservation, blocks)
            await remote.commit(reservation, blocks[:1])
            error = await error_of(remote.write(reservation, [b"x" * 100_000]))
            assert type(error) is ReservationExpiredError
            async with remote.leased(keys_of("a")) as lease:
                assert await remote.read(lease) == [None]

    async def test_indices_and_lengths_beyond_the_blocks_are_refused(self) -> None:
        async with self.node() as node, self.remote(node) as remote:
            await remote.put(keys_of("a"), [bytes(1_000)])
            async with remote.leased(keys_of("a")) as lease:
                wrong = BulkRead(1, memoryview(bytearray(1_000)), 0)
                call = remote.bulk.read(remote.session_id, lease.id, [wrong], deadline_s=LONG_S)
                assert type(await error_of(call)) is InvalidArgumentError
            reservation = await remote.reserve(keys_of("b"), 1_000)
            for write in (BulkWrite(1, memoryview(b"x")), BulkWrite(0, memoryview(bytes(1_001)))):
                writing = remote.bulk.write(
                    remote.session_id, reservation.id, [write], deadline_s=LONG_S
                )
                assert type(await error_of(writing)) is InvalidArgumentError

    async def test_a_writer_that_vanishes_leaves_nothing(self) -> None:
        async with self.node(lease_ttl_ms=TTL_MS) as node, self.remote(node) as watcher:
            async with self.vanishing(node) as vanishing:
                reservation = await vanishing.reserve(keys_of("a", "b"), 100_000)
                await vanishing.write(reservation, [bytes(100_000)])
            await until(lambda: not node.store.manager.statistics().reservations)
            statistics = node.store.manager.statistics()
            assert (statistics.orphaned_blocks, statistics.tiers[0].used_bytes) == (0, 0)
            assert await watcher.num_matched(keys_of("a", "b")) == 0

    async def test_a_cancelled_read_writes_nothing_any_more(self) -> None:
        length = 24 << 20
        async with self.node(host=1 << 30) as node, self.remote(node) as remote:
            await remote.put(keys_of("a"), [b"x" * length])
            async with remote.leased(keys_of("a")) as lease:
                read = asyncio.ensure_future(remote.read(lease))
                await until(lambda: lease.into[0][0] != 0 or read.done())
                read.cancel()
                await asyncio.wait([read])
                abandoned, before = lease.into[0], bytes(lease.into[0])
                lease.into = [memoryview(bytearray(length))]
                assert await remote.read(lease) == [None]  # all that was on its way has come
                assert abandoned == before

    async def test_a_black_hole_costs_the_deadline_and_no_more(self) -> None:
        with closing(socket.create_server(("127.0.0.1", 0))) as hole:
            host, port = hole.getsockname()
            channel = self.make_channel(f"{self.scheme}{host}:{port}")
            try:
                read = BulkRead(0, memoryview(bytearray(1_000)), 0)
                (miss,) = await channel.read(1, 1, [read], deadline_s=0.2)
                assert miss in (MissReason.LATE, MissReason.FAILED)
                write = channel.write(1, 1, [BulkWrite(0, memoryview(b"x"))], deadline_s=0.2)
                assert isinstance(await error_of(write), KVStoreError)
            finally:
                await channel.close()

    async def test_a_restarted_node_is_found_again(self) -> None:
        keys, block = keys_of("a"), bytes(range(256)) * 400
        async with self.node() as first:
            address = self.address(first)
            channel = self.make_channel(address)
            remote = await Remote.open(first.zmq_endpoint, channel)
            await remote.put(keys, [block])
            async with remote.leased(keys) as lease:
                assert await remote.read(lease) == [None]
            await remote.close_control()
        gone = remote.read(lease, deadline_s=0.2)
        assert await gone in ([MissReason.LATE], [MissReason.FAILED])
        settings = {self.setting: address}
        async with self.node(**settings) as second:
            remote = await Remote.open(second.zmq_endpoint, channel)
            await remote.put(keys, [block])
            async with remote.leased(keys) as lease:
                assert await remote.read(lease) == [None]
                assert lease.into[0] == block
            await remote.vanish()

    async def test_a_node_that_stands_still_costs_the_deadline_and_no_more(self) -> None:
        with node_process(self._config()) as node:
            async with self.vanishing(node) as remote:
                await remote.put(keys_of("a"), [b"x" * LARGE])
                lease = await remote.acquire(keys_of("a"))
                reservation = await remote.reserve(keys_of("b"), LARGE)
                node.pause()
                assert await remote.read(lease, deadline_s=0.2) == [MissReason.LATE]
                late, before = lease.into[0], bytes(lease.into[0])
                write = remote.write(reservation, [b"y" * LARGE], deadline_s=0.2)
                assert type(await error_of(write)) is DeadlineExceededError
                node.go_on()
                lease.into = [memoryview(bytearray(LARGE))]
                assert await remote.read(lease) == [None]
                assert late == before, "nothing came after the deadline"
                assert lease.into[0] == b"x" * LARGE

    async def test_a_node_killed_in_mid_transfer_ends_the_calls(self) -> None:
        with node_process(self._config()) as node:
            async with self.vanishing(node) as remote:
                await remote.put(keys_of("a"), [b"x" * LARGE])
                lease = await remote.acquire(keys_of("a"))
                reservation = await remote.reserve(keys_of("b"), LARGE)
                node.pause()
                read = asyncio.ensure_future(remote.read(lease))
                writing = remote.write(reservation, [b"y" * LARGE], deadline_s=1.0)
                write = asyncio.ensure_future(error_of(writing))
                await asyncio.sleep(0.05)  # what was on its way comes, the rest does not
                node.kill()
                assert await read == [MissReason.FAILED]
                # One that had not begun yet waits for the node to come back, for its deadline.
                assert isinstance(await write, KVStoreError)

    def _config(self) -> NodeConfig:
        values = {"host": 1 << 30, "arena_folder": self.folder}
        return NodeConfig.model_validate(values)

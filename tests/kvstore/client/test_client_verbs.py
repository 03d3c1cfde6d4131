"""The verbs over every transport, with and without a mapped arena."""

from __future__ import annotations

import asyncio

import pytest

from kvstore.client.aio import Client
from kvstore.core.errors import (
    ChecksumError,
    ConfigurationError,
    InvalidArgumentError,
    LeaseExpiredError,
    ReservationExpiredError,
    UnavailableError,
)
from kvstore.core.layout import KVLayout
from kvstore.tiers.base import MissReason, TierKind

from .conftest import MAPPED, WAYS, buffers, contents, make_keys, until


@pytest.mark.parametrize("length", [1, 5_000, 3 << 20])
@pytest.mark.parametrize("way", WAYS)
async def test_what_is_put_is_got(make_node, connect, way, length):
    node = await make_node()
    async with connect(node, way) as client:
        keys = make_keys(1, 2, 3)
        data, into = contents(keys, length), buffers(3, length)
        assert await client.put(keys, data, deadline_s=10) == [0, 1, 2]
        assert await client.put(keys, data, deadline_s=10) == [0, 1, 2]
        assert await client.get(keys, into, deadline_s=10) == {}
        assert into == data
        assert (await client.match(make_keys(1, 2, 9, 3))).tiers == [TierKind.HOST] * 2


@pytest.mark.parametrize("way", WAYS)
async def test_misses_say_why_and_hits_between_them_are_read(make_node, connect, way):
    node = await make_node()
    async with connect(node, way) as client:
        keys = make_keys("a", "b", "c")
        data, into = contents(keys, 1000), buffers(3, 1000)
        await client.put(keys[1:2], data[1:2])
        async with await client.reserve(keys[2:], 1000):
            misses = await client.get(keys, into)
        assert misses == {0: MissReason.NEVER_STORED, 2: MissReason.PENDING}
        assert into[1] == data[1]
        async with await client.acquire(keys[1:]) as lease:
            assert lease.prefix_length == 1
            assert [block.index for block in lease.found] == [0]
        async with await client.acquire(keys[1:2]) as lease:
            assert lease.prefix_length == 1
            assert lease.misses == {}


@pytest.mark.parametrize("way", WAYS)
async def test_blocks_are_visible_as_they_are_committed_and_the_rest_never(make_node, connect, way):
    node = await make_node()
    async with connect(node, way) as client:
        keys = make_keys(*range(4))
        data = contents(keys, 1000)
        async with await client.reserve(keys, 1000) as reservation:
            assert [block.index for block in reservation.blocks] == [0, 1, 2, 3]
            for block in reservation.blocks:
                block.view[:] = data[block.index]
            await reservation.commit(reservation.blocks[:1])
            assert len(await client.match(keys)) == 1
            await reservation.commit(reservation.blocks[1:3])
            with pytest.raises(ReservationExpiredError):
                await reservation.commit(reservation.blocks[:1])
        assert len(await client.match(keys)) == 3
        with pytest.raises(ValueError, match="released"):
            reservation.blocks[3].view[0] = 1
        await reservation.abort()
        into = buffers(4, 1000)
        assert await client.get(keys, into) == {3: MissReason.NEVER_STORED}
        assert into[:3] == data[:3]
        assert (await client.statistics()).reservations == 0


@pytest.mark.parametrize("way", WAYS)
async def test_wrong_buffers_are_refused(make_node, connect, way):
    node = await make_node()
    async with connect(node, way) as client:
        keys = make_keys("a")
        await client.put(keys, contents(keys, 1000))
        with pytest.raises(InvalidArgumentError, match="999 bytes"):
            await client.get(keys, buffers(1, 999))
        with pytest.raises(InvalidArgumentError, match="contiguous"):
            await client.put(keys, [memoryview(bytes(2000))[::2]])
        with pytest.raises(InvalidArgumentError, match="empty"):
            await client.put(keys, [memoryview(b"")])
        async with await client.acquire(keys) as lease:
            assert lease.found[0].view.readonly
        assert (await client.statistics()).leases == 0


@pytest.mark.parametrize("way", WAYS)
async def test_bytes_that_went_bad_are_a_miss_and_the_replica_goes(make_node, connect, way):
    node = await make_node()
    async with connect(node, way, verify="always") as client:
        keys = make_keys("a")
        await client.put(keys, contents(keys, 1000))
        host = node.store._host
        host.view(host.acquire(list(keys))[0].slot)[7] ^= 1
        host.release(list(keys))
        assert await client.get(keys, buffers(1, 1000)) == {0: MissReason.CORRUPT}
        assert await client.get(keys, buffers(1, 1000)) == {0: MissReason.CORRUPT}
        assert len(await client.match(keys)) == 0
        assert await client.put(keys, contents(keys, 1000)) == [0]
        assert await client.get(keys, buffers(1, 1000)) == {}


@pytest.mark.parametrize("way", MAPPED)
async def test_copy_into_proves_every_copy(make_node, connect, way):
    node = await make_node()
    async with connect(node, way, verify="always") as client:
        keys = make_keys("a")
        await client.put(keys, contents(keys, 1000))
        async with await client.acquire(keys) as lease:
            (block,) = lease.found
            lease.copy_into(block, buffers(1, 2000)[0])
            lease.verify(block)
            host = node.store._host
            host.view(host.acquire(list(keys))[0].slot)[7] ^= 1
            host.release(list(keys))
            with pytest.raises(ChecksumError):
                lease.copy_into(block, buffers(1, 1000)[0])
        assert len(await client.match(keys)) == 0, "the node was told"


@pytest.mark.parametrize("way", WAYS)
async def test_a_reader_whose_lease_ended_never_gets_wrong_bytes(make_node, connect, way):
    node = await make_node(host=4 << 20, lease_ttl_ms=200)
    async with connect(node, way) as client:
        keys = make_keys("a")
        data = contents(keys, 1 << 20)
        await client.put(keys, data)
        lease = await client.acquire(keys)

        async def reused():
            others = make_keys(*range(4))
            await client.put(others, contents(others, 1 << 20))
            return len(await client.match(keys)) == 0

        await until(reused, "the memory has other blocks")
        into = buffers(1, 1 << 20)[0]
        if way in MAPPED:
            with pytest.raises(LeaseExpiredError):
                lease.copy_into(lease.found[0], into)
            with pytest.raises(LeaseExpiredError):
                lease.verify(lease.found[0])
        else:
            lease.copy_into(lease.found[0], into)
            assert into == data[0], "a private copy stays"
        await lease.release()


@pytest.mark.parametrize("way", WAYS)
async def test_a_session_is_kept_alive_while_nothing_is_asked(make_node, connect, way):
    node = await make_node(lease_ttl_ms=300)
    async with connect(node, way):
        (session,) = node.store.manager._sessions.all()
        first = session.expires_at

        async def renewed_twice():
            return session.expires_at > first + 0.3

        await until(renewed_twice, "it lives longer than its time")
        assert node.store.manager._sessions.all() == [session]


@pytest.mark.parametrize("way", ["zmq", "grpc"])
async def test_a_restarted_node_is_found_again(make_node, connect, way):
    node = await make_node()
    ends = {"zmq_endpoint": node.zmq_endpoint, "grpc_address": node.grpc_address}
    async with connect(node, way) as client:
        keys = make_keys("a", "b")
        data = contents(keys, 1000)
        await client.put(keys, data)
        lease = await client.acquire(keys)
        reservation = await client.reserve(make_keys("c"), 1000)
        await node.stop()
        with pytest.raises(UnavailableError):
            await client.put(keys, data, deadline_s=0.3)
        again = await make_node(**ends)
        assert await client.get(keys, buffers(2, 1000), deadline_s=10) == dict.fromkeys(
            range(2), MissReason.NEVER_STORED
        )
        assert await client.put(keys, data) == [0, 1]
        with pytest.raises(ReservationExpiredError):
            await reservation.commit()
        await reservation.abort()
        with pytest.raises(LeaseExpiredError):
            lease.copy_into(lease.found[0], buffers(1, 1000)[0])
        await lease.release()
        assert (await client.statistics()).boot_id == again.epoch


@pytest.mark.parametrize("way", ["zmq", "grpc", "inproc"])
async def test_a_reserve_that_was_given_up_holds_nothing(make_node, connect, way):
    node = await make_node()
    async with connect(node, way) as client:
        for turns in range(12):
            reserving = asyncio.ensure_future(client.reserve(make_keys(turns), 1000))
            for _ in range(turns):
                await asyncio.sleep(0)
            reserving.cancel()
            (outcome,) = await asyncio.gather(reserving, return_exceptions=True)
            if not isinstance(outcome, asyncio.CancelledError):
                await outcome.abort()

        async def free():
            statistics = await client.statistics()
            return not statistics.reservations and not statistics.tiers[0].used_bytes

        await until(free, "every slot came back")


async def test_layouts_are_checked_when_connecting(make_node):
    node = await make_node()
    huge = KVLayout(1000, 100, 128, 1000, "float32")
    with pytest.raises(InvalidArgumentError, match="does not fit"):
        await Client.connect(node.zmq_endpoint, layouts=[huge])


async def test_nobody_there_is_unavailable_and_nonsense_is_a_configuration_error():
    for endpoint in ("tcp://127.0.0.1:1", "grpc://127.0.0.1:1"):
        with pytest.raises(UnavailableError, match="nobody answers"):
            await Client.connect(endpoint, deadline_s=0.2)
    with pytest.raises(ConfigurationError, match="cannot use endpoint"):
        await Client.connect("http://127.0.0.1:1")


async def test_a_closed_client_is_unavailable(make_node, connect):
    node = await make_node()
    async with connect(node) as client:
        await client.close()
        with pytest.raises(UnavailableError):
            await client.put(make_keys("a"), [memoryview(b"x")])
        with pytest.raises(UnavailableError):
            await client.match(make_keys("a"))
    assert node.store.manager.statistics().sessions == 0


async def test_blocks_come_up_from_disk(make_node, connect, tmp_path):
    node = await make_node(host=4 << 20, disk=64 << 20, disk_path=tmp_path / "disk")
    async with connect(node) as client:
        keys = make_keys(*range(16))
        data = contents(keys, 512 << 10)

        for i in range(16):
            await client.put(keys[i : i + 1], data[i : i + 1])

            async def on_disk(count=i + 1):
                return (await client.statistics()).tiers[1].blocks == count

            await until(on_disk, "each is written through before the next")
        tiers = set((await client.match(keys)).tiers)
        assert tiers == {TierKind.HOST, TierKind.DISK}
        for i in range(16):
            into = buffers(1, 512 << 10)
            assert await client.get(keys[i : i + 1], into, deadline_s=10) == {}
            assert into == data[i : i + 1]

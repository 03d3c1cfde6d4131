"""What a view does while its Redis is away, hangs, forgets or refuses."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from kvstore.directory import redis_reporter
from kvstore.directory.redis_connection import Call, RedisConnection
from kvstore.directory.redis_view import RedisView
from kvstore.testing.fake_node import FakeNode
from kvstore.testing.redis_server import PROGRAM, RedisServer
from kvstore.testing.tcp_proxy import TcpProxy
from kvstore.testing.view_conformance import find, keys, on, until, until_found
from kvstore.tiers.base import TierKind

HOST, DISK = TierKind.HOST, TierKind.DISK
ON_A, ON_B = [on("a")], [on("b")]


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    if PROGRAM is None:
        pytest.skip("redis-server is missing: sudo apt-get install redis-server")
    with RedisServer(tmp_path) as server:
        yield server


async def started(stack: AsyncExitStack, name: str, url: str, boot_id: int = 1) -> FakeNode:
    node = FakeNode(name, boot_id, "tcp://127.0.0.1:0", RedisView(url))
    await node.start()
    stack.push_async_callback(node.stop)
    return node


async def pair(stack: AsyncExitStack, redis: RedisServer) -> tuple[FakeNode, FakeNode]:
    """Two nodes that see ten blocks of each other."""
    a, b = await started(stack, "a", redis.url), await started(stack, "b", redis.url)
    a.stored(HOST, keys(0, 10))
    b.stored(HOST, keys(0, 10))
    await until_found(a, keys(0, 10), 10 * [ON_B])
    await until_found(b, keys(0, 10), 10 * [ON_A])
    return a, b


async def ask(redis: RedisServer, *calls: Call) -> list[Any]:
    connection = RedisConnection(redis.url)
    try:
        return await connection.pipeline(calls, deadline_s=10)
    finally:
        await connection.close()


def view_of(node: FakeNode) -> RedisView:
    assert isinstance(node.view, RedisView)
    return node.view


async def test_a_redis_that_comes_back_empty_is_told_all_again(
    stack: AsyncExitStack, redis: RedisServer, log: pytest.LogCaptureFixture
) -> None:
    a, b = await pair(stack, redis)
    redis.kill()
    await until(lambda: "going on with local blocks only" in log.text)
    assert await find(a, keys(0, 10)) == 10 * [[]]
    b.removed(HOST, keys(0, 5))
    b.stored(DISK, keys(20, 22))
    redis.start()
    b.stored(HOST, keys(30, 31))
    expected = [*5 * [[]], *5 * [ON_B], *2 * [[on("b", DISK)]], ON_B]
    wanted = keys(0, 31)[0:10], keys(20, 22), keys(30, 31)
    hashes = [h for part in wanted for h in part.hashes]
    await until_found(a, type(wanted[0])(wanted[0].layout, hashes), expected)
    await until_found(b, keys(0, 10), 10 * [ON_A])


async def test_one_line_when_it_goes_and_one_when_it_is_back(
    stack: AsyncExitStack, redis: RedisServer, log: pytest.LogCaptureFixture
) -> None:
    a = await started(stack, "a", redis.url)
    await until(lambda: view_of(a).statistics().registered)
    redis.kill()
    await until(lambda: not view_of(a).statistics().reachable)
    for _ in range(20):
        await find(a, keys(0, 1))
        await asyncio.sleep(0.05)
    redis.start()
    await until(lambda: view_of(a).statistics().reachable)
    said = [r.levelname for r in log.records if r.name.startswith("kvstore.directory")]
    assert said == ["WARNING", "INFO"]


async def test_a_flushed_redis_is_told_all_again(stack: AsyncExitStack, redis: RedisServer) -> None:
    a, b = await pair(stack, redis)
    await ask(redis, ["FLUSHALL"])
    await until(lambda: view_of(b).statistics().rebuilds == 2)
    await until_found(a, keys(0, 10), 10 * [ON_B])
    await until_found(b, keys(0, 10), 10 * [ON_A])


async def test_a_redis_that_comes_back_with_an_old_state_is_told_all_again(
    stack: AsyncExitStack, redis: RedisServer
) -> None:
    """It loads registrations that look valid, and blocks that are long gone."""
    a, b = await pair(stack, redis)
    await ask(redis, ["SAVE"])
    b.removed(HOST, keys(0, 5))
    b.stored(HOST, keys(10, 12))
    await until_found(a, keys(0, 12), [*5 * [[]], *7 * [ON_B]])
    redis.kill()
    redis.start()
    await until_found(a, keys(0, 12), [*5 * [[]], *7 * [ON_B]])
    await until(lambda: view_of(b).statistics().rebuilds == 2)
    await until_found(a, keys(0, 12), [*5 * [[]], *7 * [ON_B]])


async def test_a_redis_that_hangs_costs_one_deadline(
    stack: AsyncExitStack, redis: RedisServer, log: pytest.LogCaptureFixture
) -> None:
    a, b = await pair(stack, redis)
    redis.pause()
    try:
        async with asyncio.timeout(20):
            assert await a.view.locate(keys(0, 10), deadline_s=0.2) == 10 * [()]
            assert not view_of(a).statistics().reachable, "before any heartbeat is late"
            # Each of these would wait longer than all of them may.
            for _ in range(100):
                assert await a.view.locate(keys(0, 10), deadline_s=60) == 10 * [()]
        b.removed(HOST, keys(0, 5))
        await until(lambda: "going on with local blocks only" in log.text)
    finally:
        redis.resume()
    await until_found(a, keys(0, 10), [*5 * [[]], *5 * [ON_B]])
    assert view_of(b).statistics().rebuilds == 1, "a pause is no restart"


async def test_a_node_that_was_cut_off_for_a_while_is_hidden_and_seen_again(
    stack: AsyncExitStack, redis: RedisServer
) -> None:
    wire = TcpProxy(redis.port)
    await wire.start()
    stack.push_async_callback(wire.stop)
    a = await started(stack, "a", redis.url)
    b = await started(stack, "b", f"redis://127.0.0.1:{wire.port}")
    b.stored(HOST, keys(0, 10))
    await until_found(a, keys(0, 10), 10 * [ON_B])
    await wire.cut()
    b.stored(HOST, keys(10, 11))  # on its way before anybody knows
    await until_found(a, keys(0, 10), 10 * [[]])
    b.stored(HOST, keys(11, 12))
    wire.mend()
    await until_found(a, keys(0, 12), 12 * [ON_B])
    assert view_of(b).statistics().rebuilds == 1


async def test_a_queue_that_overflows_is_replaced_by_the_inventory(
    stack: AsyncExitStack, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_reporter, "_MAX_WAITING_BYTES", 10_000)
    a, b = await pair(stack, redis)
    redis.pause()
    try:
        for n in range(10, 1000):
            b.stored(HOST, keys(n, n + 1))
        b.removed(HOST, keys(0, 5))
    finally:
        redis.resume()
    await until_found(a, keys(0, 1000), [*5 * [[]], *995 * [ON_B]])
    assert view_of(b).statistics().overflows == 1
    assert view_of(b).statistics().rebuilds == 2


async def test_a_redis_that_refuses_writes_does_no_harm(
    stack: AsyncExitStack, redis: RedisServer, log: pytest.LogCaptureFixture
) -> None:
    a, b = await pair(stack, redis)
    await ask(redis, ["CONFIG", "SET", "maxmemory", "1"])
    b.stored(HOST, keys(10, 12))
    await until(lambda: not view_of(a).statistics().reachable)
    assert await find(a, keys(0, 1)) == [[]]
    assert "EVAL" not in log.text, "a command may be 32 KiB"
    await ask(redis, ["CONFIG", "SET", "maxmemory", "0"])
    await until_found(a, keys(0, 12), 12 * [ON_B])


async def test_an_older_start_does_not_speak_for_a_newer_one(
    stack: AsyncExitStack, redis: RedisServer
) -> None:
    a = await started(stack, "a", redis.url)
    new = await started(stack, "b", redis.url, boot_id=2)
    new.stored(HOST, keys(0, 2))
    await until_found(a, keys(0, 2), 2 * [ON_B])
    old = await started(stack, "b", redis.url, boot_id=1)
    old.stored(HOST, keys(5, 6))
    await until(lambda: "a" in old.view.nodes())
    await old.stop()
    assert await find(a, keys(0, 6)) == [ON_B, ON_B, [], [], [], []]
    assert dict(a.view.nodes()) == {"b": new.record}
    assert view_of(new).statistics().rebuilds == 1


async def test_what_a_node_left_is_removed_in_the_background(
    stack: AsyncExitStack, redis: RedisServer
) -> None:
    a, b = await pair(stack, redis)
    b.stored(HOST, keys(10, 3000))
    await until_found(a, keys(2999, 3000), [ON_B])
    await b.stop()
    async with asyncio.timeout(30):
        while await left(redis) != 10 or await marks(redis) != [0, 0]:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    again = await started(stack, "b", redis.url, boot_id=2)
    await until_found(again, keys(0, 11), [*10 * [ON_A], []])


async def left(redis: RedisServer) -> int:
    """Blocks that Redis has a replica of."""
    (names,) = await ask(redis, ["KEYS", "kvstore:bl*"])
    return sum(await ask(redis, *(["HLEN", name] for name in names))) if names else 0


async def marks(redis: RedisServer) -> list[Any]:
    """Whether there are dead numbers, and somebody who sweeps them."""
    return await ask(redis, ["EXISTS", "kvstore:dead"], ["EXISTS", "kvstore:sweeper"])

"""The directory in Redis, against a real server."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.core.errors import DeadlineExceededError, ProtocolError, UnavailableError
from kvstore.core.ids import BlockKeys, MemberId, NodeId
from kvstore.directory.base import Directory, NodeRecord
from kvstore.directory.memory import MemoryDirectory
from kvstore.directory.redis_changes import Verb, clearing, of_keys
from kvstore.directory.redis_connection import Call, RedisConnection
from kvstore.directory.redis_directory import RedisDirectory
from kvstore.directory.redis_members import RedisMembers
from kvstore.directory.redis_scripts import NUMBER_BYTES
from kvstore.testing.directory_conformance import A, B, DirectoryConformance
from kvstore.testing.fake_node import LAYOUT
from kvstore.testing.redis_server import RedisServer
from kvstore.testing.view_conformance import keys, on
from kvstore.tiers.base import TierKind

HOST, DISK = TierKind.HOST, TierKind.DISK

_numbers = count()


@pytest.fixture
async def connection(shared_redis: RedisServer) -> AsyncIterator[RedisConnection]:
    connection = RedisConnection(shared_redis.url)
    yield connection
    await connection.close()


@pytest.fixture
def directory(connection: RedisConnection) -> Directory:
    return RedisDirectory(connection, namespace=f"test-{next(_numbers)}")


class TestRedisDirectory(DirectoryConformance):
    pass


async def test_readers_see_what_another_one_changes(connection: RedisConnection) -> None:
    """Each keeps a copy of who holds what number, and it must not outlive a change."""
    namespace = f"test-{next(_numbers)}"
    one, other = (RedisDirectory(connection, namespace=namespace) for _ in range(2))
    await one.stored(A, HOST, keys(0, 2))
    await one.stored(B, HOST, keys(0, 1))
    for directory in (one, other):
        assert await directory.locate(keys(0, 2)) == [(on(A), on(B)), (on(A),)]
    await one.forget(A)
    await one.stored(A, DISK, keys(1, 2))
    for directory in (other, one):
        assert await directory.locate(keys(0, 2)) == [(on(B),), (on(A, DISK),)]


async def test_namespaces_do_not_mix(connection: RedisConnection) -> None:
    one, other = (RedisDirectory(connection, namespace=f"test-{next(_numbers)}") for _ in "ab")
    await one.stored(A, HOST, keys(0, 1))
    assert await other.locate(keys(0, 1)) == [()]


async def test_a_lost_fence_changes_nothing(connection: RedisConnection) -> None:
    namespace = f"test-{next(_numbers)}"
    directory = RedisDirectory(connection, namespace=namespace)
    members = RedisMembers(connection, namespace, record(A, 1))
    first, second = await members.register(), await members.register()
    assert first is not None
    assert second is not None
    assert await directory.apply(A, [of_keys(Verb.STORED, HOST, keys(0, 2))], second.fence)
    for change in (
        of_keys(Verb.STORED, DISK, keys(5, 6)),
        of_keys(Verb.REMOVED, HOST, keys(0, 1)),
        clearing(HOST),
    ):
        assert not await directory.apply(A, [change], first.fence)
    await members.withdraw(first)
    assert not (await members.beat(first)).registered
    assert (await members.beat(second)).registered
    assert await directory.locate(keys(0, 6)) == [*2 * [(on(A),)], *4 * [()]]


async def test_registering_forgets_what_was_told_before(connection: RedisConnection) -> None:
    namespace = f"test-{next(_numbers)}"
    directory = RedisDirectory(connection, namespace=namespace)
    await directory.stored(A, HOST, keys(0, 1))
    await directory.stored(A, DISK, keys(0, 1))
    await RedisMembers(connection, namespace, record(A, 2)).register()
    assert await directory.locate(keys(0, 1)) == [()]


async def test_a_later_start_that_lives_is_not_displaced(connection: RedisConnection) -> None:
    namespace = f"test-{next(_numbers)}"
    old, new = (RedisMembers(connection, namespace, record(A, boot)) for boot in (9, 10))
    assert await old.register()
    registered = await new.register()
    assert registered
    assert await old.register() is None
    await new.withdraw(registered)
    assert await old.register()


async def test_a_block_is_found_in_63_places_at_most(connection: RedisConnection) -> None:
    directory = RedisDirectory(connection, namespace=f"test-{next(_numbers)}")
    for n in range(70):
        await directory.stored(MemberId(f"node-{n:02}"), HOST, keys(0, 1))
    (replicas,) = await directory.locate(keys(0, 1))
    assert replicas == tuple(on(f"node-{n:02}") for n in range(63))
    # Those gone make room.
    for n in range(10):
        await directory.forget(MemberId(f"node-{n:02}"))
    await directory.stored(MemberId("node-70"), HOST, keys(0, 1))
    (replicas,) = await directory.locate(keys(0, 1))
    assert replicas == (*(on(f"node-{n:02}") for n in range(10, 63)), on("node-70"))


async def test_a_sweep_leaves_nothing_of_the_dead(connection: RedisConnection) -> None:
    namespace = f"test-{next(_numbers)}"
    directory = RedisDirectory(connection, namespace=namespace)
    await directory.stored(A, HOST, keys(0, 3000))
    await directory.stored(B, HOST, keys(2000, 4000))
    await directory.forget(A)
    assert await directory.sweep()
    assert await sizes(connection, namespace) == 2000 * [NUMBER_BYTES]
    assert await directory.locate(keys(1999, 2001)) == [(), (on(B),)]
    await directory.forget(B)
    assert await directory.sweep()
    assert await sizes(connection, namespace) == []


async def test_one_sweeps_at_a_time(connection: RedisConnection) -> None:
    namespace = f"test-{next(_numbers)}"
    directory = RedisDirectory(connection, namespace=namespace)
    await directory.stored(A, HOST, keys(0, 3))
    await directory.forget(A)
    await connection.pipeline([["SET", f"{namespace}:sweeper", "else"]], deadline_s=5)
    assert not await directory.sweep()
    assert len(await sizes(connection, namespace)) == 3


async def test_a_table_of_another_form_is_an_error_of_ours(connection: RedisConnection) -> None:
    namespace = f"test-{next(_numbers)}"
    directory = RedisDirectory(connection, namespace=namespace)
    alien: list[Call] = [
        ["HSET", f"{namespace}:holders", "x-node", "1234"],
        ["SET", f"{namespace}:version", "v"],
    ]
    await connection.pipeline(alien, deadline_s=5)
    with pytest.raises(ProtocolError, match="namespace"):
        await directory.locate(keys(0, 1))


async def test_a_key_of_another_type_is_an_error_of_ours(connection: RedisConnection) -> None:
    namespace = f"test-{next(_numbers)}"
    await connection.pipeline([["SET", f"{namespace}:holders", "text"]], deadline_s=5)
    with pytest.raises(UnavailableError, match="WRONGTYPE"):
        await RedisDirectory(connection, namespace=namespace).stored(A, HOST, keys(0, 1))


async def test_nobody_there_and_nobody_answering_are_two_errors() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        connection = RedisConnection(f"redis://127.0.0.1:{listener.getsockname()[1]}")
        directory = RedisDirectory(connection, deadline_s=0.2)
        with pytest.raises(UnavailableError):
            await directory.locate(keys(0, 1))
        listener.listen()
        with pytest.raises(DeadlineExceededError):
            await directory.locate(keys(0, 1))
        await connection.close()


async def test_a_call_cancelled_leaves_no_answer_for_the_next(connection: RedisConnection) -> None:
    directory = RedisDirectory(connection, namespace=f"test-{next(_numbers)}")
    await directory.stored(A, HOST, keys(0, 20_000))
    for turns in range(40):
        task = asyncio.create_task(directory.locate(keys(0, 20_000)))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        assert await directory.locate(keys(19_999, 20_001)) == [(on(A),), ()]


batches = st.lists(st.integers(0, 7), max_size=6)
operations = st.lists(
    st.tuples(
        st.sampled_from(["stored", "removed", "cleared", "forget", "sweep"]),
        st.sampled_from([A, B]),
        st.sampled_from([HOST, DISK]),
        batches,
    ),
    max_size=12,
)


@settings(max_examples=25, deadline=None)
@given(script=operations)
def test_it_equals_the_directory_in_memory(
    shared_redis: RedisServer, script: list[tuple[str, MemberId, TierKind, list[int]]]
) -> None:
    asyncio.run(compare(shared_redis.url, script))


async def compare(url: str, script: list[tuple[str, MemberId, TierKind, list[int]]]) -> None:
    connection = RedisConnection(url)
    real = RedisDirectory(connection, namespace=f"test-{next(_numbers)}")
    model = MemoryDirectory()
    for verb, publisher, tier, numbers in script:
        batch = BlockKeys(LAYOUT, [keys(n, n + 1).hashes[0] for n in numbers])
        for directory in (real, model):
            match verb:
                case "stored":
                    await directory.stored(publisher, tier, batch)
                case "removed":
                    await directory.removed(publisher, tier, batch)
                case "cleared":
                    await directory.cleared(publisher, tier)
                case "forget":
                    await directory.forget(publisher)
        if verb == "sweep":
            await real.sweep()
        assert await real.locate(keys(0, 8)) == await model.locate(keys(0, 8))
    await connection.close()


async def sizes(connection: RedisConnection, namespace: str) -> list[int]:
    """Bytes of each value in the buckets."""
    (names,) = await connection.pipeline([["KEYS", f"{namespace}:b*"]], deadline_s=5)
    if not names:
        return []
    buckets = await connection.pipeline([["HVALS", name] for name in names], deadline_s=5)
    return [len(value) for values in buckets for value in values]


def record(name: str, boot_id: int) -> NodeRecord:
    return NodeRecord(NodeId(name), boot_id, "host", "tcp://h:1", "h:2", "tcp://h:3", "tcp://h:4")

"""Work on threads: shared out, and over when its caller goes on."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from kvstore.client import releases
from kvstore.client.releases import Releases
from kvstore.client.work import INLINE_BYTES, SHARED_BYTES, THREADS, run_shared, run_sized
from kvstore.core.errors import InvalidArgumentError
from kvstore.wire.v1 import node_pb2

WAIT_S = 20


@pytest.fixture
def executor():
    with ThreadPoolExecutor(THREADS) as executor:
        yield executor


@pytest.mark.parametrize(
    ("size_bytes", "parts"), [(INLINE_BYTES, 1), (SHARED_BYTES - 1, 1), (SHARED_BYTES, THREADS)]
)
async def test_every_item_is_worked_on_once(executor, size_bytes, parts):
    results = await run_shared(executor, size_bytes, list, range(1_000))
    assert len(results) == parts
    assert sorted(item for part in results for item in part) == list(range(1_000))


async def test_a_thread_that_gets_nowhere_leaves_the_rest_to_the_other(executor):
    stuck, others_done = threading.Event(), threading.Event()

    def work(items):
        done = []
        for item in items:
            if item == 0:
                stuck.set()
                assert others_done.wait(WAIT_S)
            else:
                assert stuck.wait(WAIT_S)
                done.append(item)
                if item == 99:
                    others_done.set()
        return done

    parts = await run_shared(executor, SHARED_BYTES, work, range(100))
    assert sorted(map(len, parts)) == [0, 99]


async def test_an_error_is_raised_when_no_thread_works_any_more(executor):
    failed, ended = threading.Event(), []

    def work(items):
        for item in items:
            if item == 0:
                failed.set()
                raise InvalidArgumentError("the first one")
            assert failed.wait(WAIT_S)
            ended.append(item)

    with pytest.raises(InvalidArgumentError, match="the first one"):
        await run_shared(executor, SHARED_BYTES, work, range(100))
    assert ended == list(range(1, 100))


@pytest.mark.parametrize("shared", [True, False])
async def test_a_cancelled_caller_leaves_when_no_thread_works_any_more(executor, shared):
    entered, go_on, ended = threading.Event(), threading.Event(), []

    def work(items):
        for item in items:
            entered.set()
            assert go_on.wait(WAIT_S)
            ended.append(item)

    run = run_shared if shared else run_sized
    items = range(1_000) if shared else [1]
    call = asyncio.create_task(run(executor, SHARED_BYTES, work, items))
    await asyncio.to_thread(entered.wait, WAIT_S)
    call.cancel()
    await asyncio.sleep(0.05)
    assert not call.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await call
    count = len(ended)
    assert 1 <= count <= THREADS, "what was not begun is left"
    await asyncio.sleep(0.05)
    assert len(ended) == count


class Node:
    """Answers a release when it is told to."""

    def __init__(self):
        self.released = []
        self.gate = asyncio.Event()

    async def call(self, method, request, response_type, *, deadline_s):
        assert method == "Release"
        self.released.append(list(request.lease_ids))
        await self.gate.wait()
        return node_pb2.ReleaseResponse()


async def test_releases_gather_also_while_others_are_on_their_way(monkeypatch):
    monkeypatch.setattr(releases, "GATHER_S", 60)
    node, waiting = Node(), Releases()
    waiting.add(node, 1, 10)
    await waiting.sent()
    for lease_id in (11, 12, 13):
        waiting.add(node, 1, lease_id)
        await asyncio.sleep(0)
    assert node.released == [[10]]
    arrived = asyncio.create_task(waiting.arrived())
    await asyncio.sleep(0.01)
    assert node.released == [[10], [11, 12, 13]]
    assert not arrived.done()
    node.gate.set()
    await arrived
    await waiting.close()


async def test_releases_that_nobody_answers_are_bounded(monkeypatch):
    monkeypatch.setattr(releases, "MAX_UNSENT", 2)
    node, waiting = Node(), Releases()
    for lease_id in range(3):
        waiting.add(node, 1, lease_id)
        await waiting.sent()
    node.gate.set()
    await waiting.arrived()
    waiting.add(node, 1, 4)
    await waiting.arrived()
    assert node.released == [[0], [1], [4]]
    await waiting.close()

"""What every `ClusterView` must do. Subclass it and give the fixture:

    class TestMine(ViewConformance):
        @pytest.fixture
        def views(self) -> Views: ...

Nodes are fakes with real publishers and a real server for `Describe`; the views are real.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable
from typing import Protocol

import pytest

from kvstore.core.ids import BlockHash, BlockKeys, MemberId
from kvstore.directory.base import ClusterView, Replica
from kvstore.testing.fake_node import LAYOUT, FakeNode
from kvstore.tiers.base import TierKind

NAMES = ("a", "b", "c")
DEADLINE_S = 2.0


class Views(Protocol):
    async def open(self, name: str, endpoints: dict[str, str]) -> ClusterView:
        """A new view, not started, for the node `name`. `endpoints` are those of all nodes that
        there may be."""

    async def cut_off(self, name: str) -> None:
        """What the node's views are made of can be reached by them no more: the node died."""


def keys(first: int, last: int) -> BlockKeys:
    """Spread over the buckets of a directory as real hashes are."""
    hashes = [
        BlockHash((n * 0x9E3779B97F4A7C15 % 2**64).to_bytes(8, "big") * 4)
        for n in range(first, last)
    ]
    return BlockKeys(LAYOUT, hashes)


async def until(condition: Callable[[], bool]) -> None:
    """Wait, in bounded time."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def find(node: FakeNode, wanted: BlockKeys) -> list[list[Replica]]:
    located = await node.view.locate(wanted, deadline_s=DEADLINE_S)
    return [list(replicas) for replicas in located]


async def until_found(node: FakeNode, wanted: BlockKeys, expected: list[list[Replica]]) -> None:
    """Wait until `node` sees just `expected`, in bounded time."""
    found: list[list[Replica]] = []
    try:
        async with asyncio.timeout(30):
            while (found := await find(node, wanted)) != expected:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    except TimeoutError:
        differing = [(f, e) for f, e in zip(found, expected, strict=True) if f != e]
        pytest.fail(f"{len(differing)} of {len(expected)} blocks differ: {differing[:3]}")


def on(name: str, tier: TierKind = TierKind.HOST) -> Replica:
    return Replica(MemberId(name), tier)


class Cluster:
    """Starts and ends fake nodes."""

    def __init__(self, folder: str, views: Views) -> None:
        self._views = views
        self.endpoints = {name: f"ipc://{folder}/{name}" for name in NAMES}
        self._nodes: list[FakeNode] = []

    async def node(self, name: str, *, boot_id: int = 1) -> FakeNode:
        """Not started yet."""
        view = await self._views.open(name, self.endpoints)
        node = FakeNode(name, boot_id, self.endpoints[name], view)
        self._nodes.append(node)
        return node

    async def started(self, name: str, *, boot_id: int = 1) -> FakeNode:
        node = await self.node(name, boot_id=boot_id)
        await node.start()
        return node

    async def kill(self, node: FakeNode) -> None:
        await self._views.cut_off(node.name)
        await node.die()

    async def stop(self) -> None:
        for node in self._nodes:
            await node.stop()


class ViewConformance:
    @pytest.fixture
    async def cluster(self, views: Views) -> AsyncIterator[Cluster]:
        with tempfile.TemporaryDirectory(prefix="view-") as folder:
            cluster = Cluster(folder, views)
            yield cluster
            await cluster.stop()

    async def test_a_node_alone_finds_nothing(self, cluster: Cluster) -> None:
        a = await cluster.started("a")
        a.stored(TierKind.HOST, keys(0, 3))
        assert await find(a, keys(0, 3)) == [[], [], []]
        assert await find(a, keys(0, 0)) == []
        assert dict(a.view.nodes()) == {}

    async def test_nodes_see_each_other(self, cluster: Cluster) -> None:
        nodes = [await cluster.started(name) for name in NAMES]
        for node in nodes:
            others = {other.name: other.record for other in nodes if other is not node}
            await until(lambda node=node, others=others: dict(node.view.nodes()) == others)  # type: ignore[misc]

    async def test_replicas_are_those_of_others_fastest_first(self, cluster: Cluster) -> None:
        a, b, c = [await cluster.started(name) for name in NAMES]
        a.stored(TierKind.HOST, keys(0, 3))
        b.stored(TierKind.DISK, keys(0, 2))
        c.stored(TierKind.HOST, keys(1, 3))
        disk_b = on("b", TierKind.DISK)
        await until_found(a, keys(0, 3), [[disk_b], [on("c"), disk_b], [on("c")]])
        await until_found(b, keys(0, 3), [[on("a")], [on("a"), on("c")], [on("a"), on("c")]])

    async def test_a_view_follows_the_events(self, cluster: Cluster) -> None:
        a, b = [await cluster.started(name) for name in ("a", "b")]
        b.stored(TierKind.HOST, keys(0, 4))
        b.stored(TierKind.DISK, keys(0, 1))
        await until_found(a, keys(0, 4), [[on("b"), on("b", TierKind.DISK)], *3 * [[on("b")]]])
        b.removed(TierKind.HOST, keys(1, 3))
        await until_found(a, keys(0, 4), [[on("b"), on("b", TierKind.DISK)], [], [], [on("b")]])
        b.cleared(TierKind.HOST)
        b.stored(TierKind.HOST, keys(2, 3))
        await until_found(a, keys(0, 4), [[on("b", TierKind.DISK)], [], [on("b")], []])

    async def test_many_small_events_arrive_in_order(self, cluster: Cluster) -> None:
        a, b = [await cluster.started(name) for name in ("a", "b")]
        for n in range(500):
            b.stored(TierKind.HOST, keys(n, n + 1))
            if n % 3 == 0:
                b.removed(TierKind.HOST, keys(n, n + 1))
        expected = [[] if n % 3 == 0 else [on("b")] for n in range(500)]
        await until_found(a, keys(0, 500), expected)

    async def test_what_a_node_held_before_is_seen(self, cluster: Cluster) -> None:
        """A warm disk tier, larger than any message."""
        b = await cluster.node("b")
        b.stored(TierKind.DISK, keys(0, 50_000))
        await b.start()
        a = await cluster.started("a")
        await until_found(a, keys(0, 50_000), 50_000 * [[on("b", TierKind.DISK)]])
        b.removed(TierKind.DISK, keys(10, 49_990))
        expected = [[] if 10 <= n < 49_990 else [on("b", TierKind.DISK)] for n in range(50_000)]
        await until_found(a, keys(0, 50_000), expected)

    async def test_a_dead_node_disappears_with_its_replicas(self, cluster: Cluster) -> None:
        a, b, c = [await cluster.started(name) for name in NAMES]
        b.stored(TierKind.HOST, keys(0, 2))
        c.stored(TierKind.HOST, keys(1, 3))
        await until_found(a, keys(0, 3), [[on("b")], [on("b"), on("c")], [on("c")]])
        await cluster.kill(b)
        await until_found(a, keys(0, 3), [[], [on("c")], [on("c")]])
        await until(lambda: set(a.view.nodes()) == {"c"})

    async def test_a_node_that_starts_anew_is_seen_as_it_is_now(self, cluster: Cluster) -> None:
        a, b = [await cluster.started(name) for name in ("a", "b")]
        b.stored(TierKind.HOST, keys(0, 10))
        b.stored(TierKind.DISK, keys(0, 10))
        await until_found(a, keys(9, 10), [[on("b"), on("b", TierKind.DISK)]])
        await cluster.kill(b)
        again = await cluster.node("b", boot_id=2)
        again.stored(TierKind.DISK, keys(0, 3))
        await again.start()
        again.stored(TierKind.HOST, keys(5, 6))
        expected = [*3 * [[on("b", TierKind.DISK)]], [], [], [on("b")], *4 * [[]]]
        await until_found(a, keys(0, 10), expected)
        await until(lambda: dict(a.view.nodes()) == {"b": again.record})

    async def test_a_node_that_stops_takes_leave(self, cluster: Cluster) -> None:
        a, b = [await cluster.started(name) for name in ("a", "b")]
        b.stored(TierKind.HOST, keys(0, 2))
        await until_found(a, keys(0, 2), 2 * [[on("b")]])
        await b.stop()
        await until_found(a, keys(0, 2), [[], []])
        await until(lambda: not a.view.nodes())

    async def test_a_stopped_view_answers(self, cluster: Cluster) -> None:
        a, b = [await cluster.started(name) for name in ("a", "b")]
        b.stored(TierKind.HOST, keys(0, 1))
        await until_found(a, keys(0, 1), [[on("b")]])
        await a.view.stop()
        assert await find(a, keys(0, 1)) == [[]]
        assert not a.view.nodes()

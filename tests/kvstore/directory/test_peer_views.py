"""Views made of the peers' own events."""

from __future__ import annotations

import tempfile
from contextlib import AsyncExitStack, contextmanager
from typing import Any

import pytest
import zmq
import zmq.asyncio

from kvstore.client.describe import describe
from kvstore.core.errors import ConfigurationError, KVStoreError
from kvstore.directory import records
from kvstore.directory.base import ClusterView, NodeRecord
from kvstore.directory.peers import PeerEventsView
from kvstore.testing.fake_node import FakeNode
from kvstore.testing.view_conformance import (
    ViewConformance,
    Views,
    find,
    keys,
    on,
    until,
    until_found,
)
from kvstore.tiers.base import TierKind

HOST = TierKind.HOST
ON_B = [on("b")]


class _PeerViews:
    async def open(self, name: str, endpoints: dict[str, str]) -> ClusterView:
        return PeerEventsView(list(endpoints.values()), describe)

    async def cut_off(self, name: str) -> None:
        """Its publisher dies with it: nothing else is needed."""


class TestPeerEventsView(ViewConformance):
    @pytest.fixture
    def views(self) -> Views:
        return _PeerViews()


@pytest.fixture
def folder(stack: AsyncExitStack) -> str:
    return stack.enter_context(tempfile.TemporaryDirectory(prefix="view-"))


async def started(
    stack: AsyncExitStack, name: str, endpoint: str, *peers: str, boot_id: int = 1
) -> FakeNode:
    node = FakeNode(name, boot_id, endpoint, PeerEventsView(peers, describe))
    await node.start()
    stack.push_async_callback(node.stop)
    return node


@pytest.mark.parametrize("endpoint", ["", "host:1", "http://host:1", "tcp://"])
def test_an_endpoint_that_is_none_is_refused(endpoint: str) -> None:
    with pytest.raises(ConfigurationError, match=r"node\.peers"):
        PeerEventsView([endpoint], describe)


async def test_two_endpoints_of_one_node_are_one_peer(stack: AsyncExitStack, folder: str) -> None:
    b = await started(stack, "b", f"ipc://{folder}/b")
    a = await started(stack, "a", f"ipc://{folder}/a", f"ipc://{folder}/b", f"ipc://{folder}/./b")
    b.stored(HOST, keys(0, 1))
    await until_found(a, keys(0, 1), [ON_B])
    assert list(a.view.nodes()) == ["b"]


async def test_another_node_of_the_own_name_is_told_and_not_followed(
    stack: AsyncExitStack, folder: str, log: pytest.LogCaptureFixture
) -> None:
    twin = await started(stack, "a", f"ipc://{folder}/twin", boot_id=2)
    a = await started(stack, "a", f"ipc://{folder}/a", f"ipc://{folder}/twin")
    twin.stored(HOST, keys(0, 1))
    await until(lambda: "node.node_id" in log.text)
    assert not a.view.nodes()
    assert await find(a, keys(0, 1)) == [[]]


async def test_a_peer_that_cannot_be_followed_is_tried_again(
    stack: AsyncExitStack, folder: str, log: pytest.LogCaptureFixture
) -> None:
    """It says nonsense, then fails in a way nobody thought of, then is well."""
    b = await started(stack, "b", f"ipc://{folder}/b")
    b.stored(HOST, keys(0, 1))
    good, answers = b.record, ["nonsense", "defect", "well"]

    async def ask(endpoint: str, deadline_s: float) -> NodeRecord:
        match answers.pop(0) if answers else "well":
            case "nonsense":
                return records.from_wire(
                    records.to_wire(good).__class__(node_id="b", boot_id=1, event_endpoint="?")
                )
            case "defect":
                raise ZeroDivisionError
        return good

    a = FakeNode("a", 1, f"ipc://{folder}/a", PeerEventsView([b.record.zmq_endpoint], ask))
    await a.start()
    stack.push_async_callback(a.stop)
    await until_found(a, keys(0, 1), [ON_B])
    assert "endpoint of block events" in log.text
    assert "ZeroDivisionError" in log.text


async def test_a_gap_in_the_events_is_filled(stack: AsyncExitStack, folder: str) -> None:
    b = await started(stack, "b", f"ipc://{folder}/b")
    wire = stack.enter_context(lossy_wire(b.record.event_endpoint, f"ipc://{folder}/wire"))

    async def ask(endpoint: str, deadline_s: float) -> NodeRecord:
        real = records.to_wire(b.record)
        real.event_endpoint = f"ipc://{folder}/wire"
        return records.from_wire(real)

    a = FakeNode("a", 1, f"ipc://{folder}/a", PeerEventsView([b.record.zmq_endpoint], ask))
    await a.start()
    stack.push_async_callback(a.stop)
    b.stored(HOST, keys(0, 2))
    await pass_on_until(wire, a, keys(0, 2), 2 * [ON_B])
    b.stored(HOST, keys(2, 4))
    await wire.lose_one()
    b.removed(HOST, keys(0, 1))
    await pass_on_until(wire, a, keys(0, 4), [[], *3 * [ON_B]])


class LossyWire:
    def __init__(self, source: Any, sink: Any) -> None:
        self._source = source
        self._sink = sink

    async def lose_one(self) -> None:
        """The next message that says something."""
        while len((await self._source.recv_multipart())[-1]) < 64:
            pass

    async def pass_one(self) -> None:
        await self._sink.send_multipart(await self._source.recv_multipart())


@contextmanager
def lossy_wire(upstream: str, endpoint: str) -> Any:
    with (
        zmq.asyncio.Context() as context,
        context.socket(zmq.SUB) as source,
        context.socket(zmq.PUB) as sink,
    ):
        source.connect(upstream)
        source.setsockopt(zmq.SUBSCRIBE, b"")
        sink.bind(endpoint)
        sink.setsockopt(zmq.LINGER, 0)
        yield LossyWire(source, sink)


async def pass_on_until(wire: LossyWire, node: FakeNode, wanted: Any, expected: Any) -> None:
    for _ in range(40):
        await wire.pass_one()
        if await find(node, wanted) == expected:
            return
    pytest.fail(f"{await find(node, wanted)} is not {expected}")


async def test_a_loss_is_told_and_the_own_end_is_not(
    stack: AsyncExitStack, folder: str, log: pytest.LogCaptureFixture
) -> None:
    b = await started(stack, "b", f"ipc://{folder}/b")
    a, c = [await started(stack, n, f"ipc://{folder}/{n}", f"ipc://{folder}/b") for n in "ac"]
    await until(lambda: all("b" in node.view.nodes() for node in (a, c)))
    await c.stop()
    assert "silent" not in log.text
    await b.stop()
    await until(lambda: "b" not in a.view.nodes())
    assert log.text.count("peer b is silent") == 1


async def test_a_peer_whose_events_do_not_come_is_no_node(
    stack: AsyncExitStack, folder: str, log: pytest.LogCaptureFixture
) -> None:
    """It answers, so it is asked again and again; nobody is told to pull from it."""
    asked = 0
    b = await started(stack, "b", f"ipc://{folder}/b")

    async def ask(endpoint: str, deadline_s: float) -> NodeRecord:
        nonlocal asked
        asked += 1
        deaf = records.to_wire(b.record)
        deaf.event_endpoint = deaf.replay_endpoint = f"ipc://{folder}/nobody"
        return records.from_wire(deaf)

    view = PeerEventsView([b.record.zmq_endpoint], ask, silence_s=0.2)
    a = FakeNode("a", 1, f"ipc://{folder}/a", view)
    await a.start()
    stack.push_async_callback(a.stop)
    await until(lambda: asked == 3)
    assert not a.view.nodes()
    assert "silent" not in log.text


async def test_describe_closes_its_channel_when_it_fails() -> None:
    with pytest.raises(KVStoreError):
        await describe("ipc:///nowhere/at/all", 0.05)
    with pytest.raises(ConfigurationError):
        await describe("nonsense", 0.05)

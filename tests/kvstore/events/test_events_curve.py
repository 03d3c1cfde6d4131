"""The event plane under CURVE: peers follow it, nobody else does."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
import zmq

from kvstore.core.ids import BlockHash, BlockKeys, LayoutFingerprint
from kvstore.events.codec import MAX_MESSAGE_BYTES
from kvstore.events.publisher import EventPublisher
from kvstore.events.subscriber import EventSubscriber
from kvstore.testing.certificates import SecureServer
from kvstore.tiers.base import TierKind
from kvstore.transports.security.caller import Role
from kvstore.transports.security.curve import Admit

PEER = frozenset({Role.PEER})
KEYS = BlockKeys(LayoutFingerprint(b"l" * 16), [BlockHash(bytes(32))])


class View:
    def __init__(self):
        self.seen = asyncio.Event()
        self.keys = []

    def stored(self, tier, keys):
        self.keys.extend(keys)
        self.seen.set()

    def removed(self, tier, keys): ...

    def cleared(self, tier): ...

    def reset(self): ...


@pytest.fixture
async def plane():
    """A publisher that knows one peer, one that expired, and one client."""
    secure = SecureServer()
    known = {
        "peer": secure.identity("peer", None, PEER),
        "expired": secure.identity("late", None, PEER, datetime.now(UTC) - timedelta(days=1)),
        "client": secure.identity("client"),
    }
    keys = secure.keys(*known.values())
    any_port = "tcp://127.0.0.1:0"
    publisher = EventPublisher(
        "node",
        1,
        any_port,
        any_port,
        lambda: [(TierKind.HOST, KEYS)],
        secure=keys.secure(Admit.PEERS),
    )
    await publisher.start()
    yield publisher, known | {"stranger": secure.identity("stranger", None, PEER)}
    await publisher.stop()


async def follow(publisher, secure, view):
    subscriber = EventSubscriber(
        "node", publisher.event_endpoint, publisher.replay_endpoint, view, secure=secure
    )
    await subscriber.start()
    return subscriber


async def test_a_peer_gets_the_snapshot_and_live_events(plane):
    publisher, known = plane
    view = View()
    subscriber = await follow(publisher, known["peer"].keys().secure, view)
    async with asyncio.timeout(20):
        await view.seen.wait()
        view.seen.clear()
        publisher.stored(TierKind.DISK, KEYS)
        await view.seen.wait()
    assert view.keys == [*KEYS, *KEYS]
    await subscriber.stop()


@pytest.mark.parametrize("who", ["client", "expired", "stranger", None])
async def test_others_get_nothing(plane, who):
    publisher, known = plane
    view, peer = View(), View()
    secure = known[who].keys().secure if who else None
    shut_out = await follow(publisher, secure, view)
    let_in = await follow(publisher, known["peer"].keys().secure, peer)
    async with asyncio.timeout(20):
        await peer.seen.wait()
        for _ in range(3):
            peer.seen.clear()
            publisher.stored(TierKind.DISK, KEYS)
            await peer.seen.wait()
    assert view.keys == []
    assert not shut_out.synced
    await shut_out.stop()
    await let_in.stop()


async def test_an_oversize_request_costs_its_sender_the_connection_only(plane):
    publisher, known = plane
    with zmq.Context() as context, context.socket(zmq.DEALER) as raw:
        raw.setsockopt(zmq.LINGER, 0)
        known["peer"].curve.secure(raw)
        raw.connect(publisher.replay_endpoint)
        raw.send(bytes(MAX_MESSAGE_BYTES + 1))
        view = View()
        subscriber = await follow(publisher, known["peer"].keys().secure, view)
        async with asyncio.timeout(20):
            await view.seen.wait()
        assert not raw.poll(0), "it was not answered"
        await subscriber.stop()
    assert publisher.statistics().malformed_requests == 0, "dropped unread"

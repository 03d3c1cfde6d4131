"""Events of somebody else than who registered: skipped, and counted."""

from __future__ import annotations

import asyncio

from cluster.conductor.feed import IndexFeed
from cluster.conductor.index import PrefixIndex
from cluster.conductor.types import Member, Role
from cluster.membership.views import Views
from kvstore.core.ids import BlockHash, BlockKeys, LayoutFingerprint, MemberId, NodeId
from kvstore.events.publisher import EventPublisher
from kvstore.tiers.base import TierKind

KEYS = BlockKeys(LayoutFingerprint(bytes(16)), [BlockHash(bytes([i]) * 32) for i in range(4)])
ANY = "tcp://127.0.0.1:0"


async def test_events_of_an_unknown_publisher_change_nothing_and_are_counted() -> None:
    index, views = PrefixIndex(), Views()
    stranger = EventPublisher("stranger", 7, ANY, ANY, list)
    await stranger.start()
    member = Member(
        MemberId("worker"),
        Role.NODE,
        "127.0.0.1:1",
        NodeId("worker"),
        stranger.event_endpoint,
        stranger.replay_endpoint,
    )
    try:
        await views.open(member, 7, IndexFeed(index, 0, lambda: True))
        async with asyncio.timeout(20):
            while views.skipped_messages < 2:
                stranger.stored(TierKind.HOST, KEYS)
                await asyncio.sleep(0.02)
        assert len(index) == 0
        counted = views.skipped_messages
        await views.close(member.member_id)
        assert views.skipped_messages >= counted
    finally:
        await views.close_all()
        await stranger.stop()

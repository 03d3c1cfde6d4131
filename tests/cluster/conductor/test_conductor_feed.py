"""Block events of one member, of several layouts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster.conductor.feed import IndexFeed
from cluster.conductor.index import PrefixIndex
from cluster.conductor.routing_keys import RoutingKeys
from kvstore.core.ids import BlockHash, BlockKeys, LayoutFingerprint
from kvstore.tiers.base import TierKind

LAYOUTS = [LayoutFingerprint(bytes([i]) * 16) for i in range(3)]
HASHES = [BlockHash(bytes([i]) * 32) for i in range(4)]
SLOT = 5

_events = st.lists(
    st.tuples(
        st.sampled_from(["stored", "stored", "removed", "cleared", "reset"]),
        st.sampled_from([TierKind.HOST, TierKind.DISK]),
        st.sampled_from(LAYOUTS),
        st.lists(st.sampled_from(HASHES), max_size=4),
    ),
    max_size=20,
)


@given(_events)
def test_feed_a_block_is_there_while_it_is_in_any_layout(
    events: list[tuple[str, TierKind, LayoutFingerprint, list[BlockHash]]],
) -> None:
    index = PrefixIndex()
    feed = IndexFeed(index, SLOT, lambda: True)
    held: set[tuple[TierKind, LayoutFingerprint, BlockHash]] = set()
    for verb, tier, layout, hashes in events:
        named = {(tier, layout, block_hash) for block_hash in hashes}
        if verb == "stored":
            feed.stored(tier, BlockKeys(layout, hashes))
            held |= named
        elif verb == "removed":
            feed.removed(tier, BlockKeys(layout, hashes))
            held -= named
        elif verb == "cleared":
            feed.cleared(tier)
            held = {one for one in held if one[0] is not tier}
        else:
            feed.reset()
            held.clear()
        for of in (TierKind.HOST, TierKind.DISK):
            names = sorted({block_hash for tier, _, block_hash in held if tier is of})
            assert index.held(SLOT, of) == set(RoutingKeys.of_hashes(names))


def test_feed_late_events_are_dropped() -> None:
    index, valid = PrefixIndex(), [True]
    feed = IndexFeed(index, SLOT, lambda: valid[0])
    feed.stored(TierKind.HOST, BlockKeys(LAYOUTS[0], HASHES[:2]))
    valid.clear()
    valid.append(False)
    feed.stored(TierKind.HOST, BlockKeys(LAYOUTS[1], HASHES))
    feed.removed(TierKind.HOST, BlockKeys(LAYOUTS[0], HASHES))
    feed.cleared(TierKind.HOST)
    assert index.held(SLOT, TierKind.HOST) == set(RoutingKeys.of_hashes(HASHES[:2]))
    assert index.late_events == 3

"""What every `AddressableTier` must do beyond `TierConformance`, as a class of tests."""

from __future__ import annotations

from contextlib import closing

from kvstore.core.errors import InvalidArgumentError
from kvstore.core.ids import BlockHash, BlockKey, LayoutFingerprint
from kvstore.testing.clock import ManualClock
from kvstore.testing.tier_conformance import (
    LAYOUT,
    TierConformance,
    inventory_keys,
    numbered_key,
)
from kvstore.tiers.base import AddressableTier, ReserveOutcome

OTHER_LAYOUT = LayoutFingerprint(b"another--layout-")


def other_key(number: int) -> BlockKey:
    return BlockKey(OTHER_LAYOUT, BlockHash(number.to_bytes(32, "big")))


def keys(*numbers: int) -> list[BlockKey]:
    return [numbered_key(number) for number in numbers]


def put(tier: AddressableTier, chain: list[BlockKey], length_bytes: int) -> list[BlockKey]:
    """Make `chain` resident, whatever its bytes; returns what was evicted for it."""
    reserved = tier.reserve(chain, length_bytes)
    assert set(reserved.outcomes) == {ReserveOutcome.RESERVED}
    tier.commit(chain, [length_bytes] * len(chain), [0] * len(chain))
    return list(reserved.evicted)


class AddressableTierConformance(TierConformance):
    """Implement `make_addressable` instead of `make_tier`."""

    def make_tier(self) -> AddressableTier:
        return self.make_addressable(ManualClock())

    def make_addressable(self, clock: ManualClock) -> AddressableTier:
        """As `make_tier`, with the clock of its retention."""
        raise NotImplementedError

    def evict_all(self, tier: AddressableTier, layout: LayoutFingerprint) -> list[BlockKey]:
        """One after the other, in the order in which they go."""
        order: list[BlockKey] = []
        while gone := tier.evict_within([layout], 1):
            order += gone
        return order

    def test_what_is_retained_goes_last_and_what_is_given_up_first(self) -> None:
        dear, plain, cheap = keys(1, 2, 3), keys(11, 12, 13), keys(21, 22, 23)
        with closing(self.make_tier()) as tier:
            for chain in (dear, plain, cheap):
                put(tier, chain, self.block_bytes)
            assert tier.retain([*dear, *keys(9999)], 90, None) == dear
            assert tier.retain(cheap, 0, None) == cheap
            assert self.evict_all(tier, LAYOUT) == [*cheap[::-1], *plain[::-1], *dear[::-1]]

    def test_retention_ends(self) -> None:
        clock = ManualClock()
        with closing(self.make_addressable(clock)) as tier:
            for chain in (keys(1, 2), keys(11, 12)):
                put(tier, chain, self.block_bytes)
            tier.retain(keys(1, 2), 10, 60)
            tier.retain(keys(1, 2), 90, 30)
            tier.retain(keys(11, 12), 80, 60)
            clock.advance(31)
            assert self.evict_all(tier, LAYOUT) == keys(2, 1, 12, 11)

    def test_a_head_is_kept_as_long_as_its_tail(self) -> None:
        with closing(self.make_tier()) as tier:
            put(tier, keys(1, 2, 3, 4), self.block_bytes)
            put(tier, keys(11, 12), self.block_bytes)
            tier.retain(keys(3), 90, None)
            tier.retain(keys(1), 0, None)
            tier.touch(keys(1, 2, 3, 4))
            order = self.evict_all(tier, LAYOUT)
            assert set(order[:3]) == set(keys(4, 12, 11))
            assert order[3:] == keys(3, 2, 1)

    def test_a_tail_that_comes_later_keeps_its_head(self) -> None:
        with closing(self.make_tier()) as tier:
            put(tier, keys(1, 2), self.block_bytes)
            tier.retain(keys(1, 2), 0, None)
            reserved = tier.reserve(keys(1, 2, 3), self.block_bytes)
            assert len(reserved.slots) == 1
            tier.commit(keys(3), [self.block_bytes], [0])
            assert self.evict_all(tier, LAYOUT) == keys(3, 2, 1)

    def test_retention_leaves_with_its_block(self) -> None:
        with closing(self.make_tier()) as tier:
            put(tier, keys(1), self.block_bytes)
            tier.retain(keys(1), 90, None)
            tier.drop(keys(1))
            put(tier, keys(1), self.block_bytes)
            put(tier, keys(2), self.block_bytes)
            assert self.evict_all(tier, LAYOUT) == keys(1, 2)

    def test_retention_out_of_range_is_refused_by_name(self) -> None:
        with closing(self.make_tier()) as tier:
            for priority, duration_s, field in ((101, 1.0, "priority"), (50, 0.0, "duration_s")):
                message = ""
                try:
                    tier.retain(keys(1), priority, duration_s)
                except InvalidArgumentError as error:
                    message = str(error)
                assert field in message

    def test_bytes_are_counted_by_layout(self) -> None:
        with closing(self.make_tier()) as tier:
            tier.reserve([other_key(1)], self.block_bytes)
            pending_bytes = tier.bytes_of(OTHER_LAYOUT)
            assert pending_bytes >= self.block_bytes
            assert tier.bytes_of(LAYOUT) == 0
            put(tier, keys(1, 2), self.block_bytes)
            tier.commit([other_key(1)], [10], [0])
            assert tier.bytes_of(OTHER_LAYOUT) == pending_bytes
            assert (
                tier.bytes_of(LAYOUT) == 2 * pending_bytes == 2 * tier.statistics().used_bytes / 3
            )
            tier.reserve([other_key(2)], self.block_bytes)
            tier.abort([other_key(2)])
            tier.drop([other_key(1)])
            assert tier.bytes_of(OTHER_LAYOUT) == 0

    def test_eviction_within_layouts_leaves_others_alone(self) -> None:
        with closing(self.make_tier()) as tier:
            put(tier, keys(1, 2, 3), self.block_bytes)
            put(tier, [other_key(i) for i in range(4)], self.block_bytes)
            block_bytes = tier.bytes_of(LAYOUT) // 3
            gone = tier.evict_within([OTHER_LAYOUT], block_bytes + 1)
            assert gone == [other_key(3), other_key(2)]
            assert tier.bytes_of(OTHER_LAYOUT) == 2 * block_bytes
            tier.acquire([other_key(0)])
            assert tier.evict_within([OTHER_LAYOUT], 100 * block_bytes) == [other_key(1)]
            assert tier.evict_within([], block_bytes) == []
            assert tier.evict_within([LAYOUT], 0) == []
            assert set(inventory_keys(tier)) == {*keys(1, 2, 3), other_key(0)}
            tier.release([other_key(0)])

    def test_guarded_blocks_are_passed_over(self) -> None:
        guarded = set(keys(1, 3))
        with closing(self.make_tier()) as tier:
            tier.guard = guarded.__contains__
            put(tier, keys(1, 2, 3, 4), self.block_bytes)
            assert set(self.evict_all(tier, LAYOUT)) <= set(keys(2, 4))
            for number in range(100, 160):
                put(tier, keys(number), self.block_bytes)
            assert guarded <= set(inventory_keys(tier))
            guarded.clear()
            evicted = self.evict_all(tier, LAYOUT)
            assert set(keys(1, 3)) <= set(evicted)
            assert inventory_keys(tier) == []

"""What every `Tier` must do, as a class of tests. Run by this project for its own tiers.

    class TestMyTier(TierConformance):
        def make_tier(self) -> Tier:
            return MyTier(self.capacity_bytes)

        def damage(self, tier: Tier, key: BlockKey) -> None: ...

pytest collects the inherited methods; nothing here imports it.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from contextlib import closing
from dataclasses import FrozenInstanceError

from kvstore.core.checksum import checksum
from kvstore.core.ids import BlockHash, BlockKey, LayoutFingerprint
from kvstore.tiers.base import Block, MissReason, Tier

LAYOUT = LayoutFingerprint(b"tier-conformance")


def numbered_key(number: int) -> BlockKey:
    return BlockKey(LAYOUT, BlockHash(number.to_bytes(32, "big")))


def numbered_block(number: int, length_bytes: int) -> Block:
    """A block whose bytes follow from its number, and differ from those of all others."""
    data = memoryview(random.Random(number).randbytes(length_bytes))  # noqa: S311
    return Block(numbered_key(number), data, checksum(data))


def load_one(tier: Tier, block: Block) -> tuple[MissReason | None, bytes]:
    """Reason for the miss or None, and what was read."""
    into = bytearray(block.data.nbytes)
    (reason,) = tier.load([block.key], [memoryview(into)])
    return reason, bytes(into)


def inventory_keys(tier: Tier) -> list[BlockKey]:
    return [info.key for info in tier.inventory()]


class TierConformance:
    """Implement `make_tier` and `damage`; each test makes a fresh tier and closes it."""

    capacity_bytes = 1 << 20
    """Of the tier that `make_tier` returns."""
    block_bytes = 30_000
    """No multiple of anything, so that padding is met."""
    lengths_bytes: Sequence[int] = (1, 4095, 4096, 4097, 65536, 120_000)
    """Of blocks that the tier takes; all `block_bytes` where it takes no other."""

    def make_tier(self) -> Tier:
        """An empty tier of `capacity_bytes` that takes blocks of up to 120,000 bytes."""
        raise NotImplementedError

    def damage(self, tier: Tier, key: BlockKey) -> None:
        """Change a byte of a stored block behind the tier's back."""
        raise NotImplementedError

    def blocks(self, *numbers: int) -> list[Block]:
        return [numbered_block(number, self.block_bytes) for number in numbers]

    def test_round_trip_of_any_length(self) -> None:
        lengths = self.lengths_bytes
        blocks = [numbered_block(i, length) for i, length in enumerate(lengths)]
        with closing(self.make_tier()) as tier:
            result = tier.store(blocks)
            assert (list(result.stored), list(result.evicted)) == ([b.key for b in blocks], [])
            into = [memoryview(bytearray(length)) for length in lengths]
            assert tier.load([b.key for b in blocks], into) == [None] * len(blocks)
            assert [bytes(view) for view in into] == [bytes(b.data) for b in blocks]

    def test_load_into_a_longer_buffer_leaves_the_rest_alone(self) -> None:
        (block,) = self.blocks(1)
        into = memoryview(bytearray(b"\xee" * (self.block_bytes + 9)))
        with closing(self.make_tier()) as tier:
            tier.store([block])
            assert tier.load([block.key], [into[1:]]) == [None]
        assert into[0] == 0xEE
        assert into[1 : 1 + self.block_bytes] == block.data
        assert bytes(into[1 + self.block_bytes :]) == b"\xee" * 8

    def test_what_was_never_stored_is_a_miss(self) -> None:
        here, missing = self.blocks(1, 2)
        with closing(self.make_tier()) as tier:
            tier.store([here])
            into = [memoryview(bytearray(self.block_bytes)) for _ in range(3)]
            reasons = tier.load([missing.key, here.key, missing.key], into)
            assert reasons == [MissReason.NEVER_STORED, None, MissReason.NEVER_STORED]
            assert into[1] == here.data
            assert missing.key not in tier
            assert tier.present([missing.key, here.key]) == [False, True]
            assert tier.info(missing.key) is None

    def test_empty_batches(self) -> None:
        with closing(self.make_tier()) as tier:
            assert list(tier.store([]).stored) == []
            assert tier.load([], []) == []
            assert tier.drop([]) == []

    def test_a_block_already_here_is_left_as_it_is(self) -> None:
        (block,) = self.blocks(1)
        other = memoryview(b"other bytes")
        with closing(self.make_tier()) as tier:
            tier.store([block])
            again = tier.store([Block(block.key, other, checksum(other))])
            assert list(again.stored) == [block.key]
            assert load_one(tier, block) == (None, bytes(block.data))
            assert tier.statistics().blocks == 1

    def test_a_key_twice_in_a_batch_is_stored_once(self) -> None:
        (block,) = self.blocks(1)
        with closing(self.make_tier()) as tier:
            assert list(tier.store([block, block]).stored) == [block.key]
            assert inventory_keys(tier) == [block.key]
            assert load_one(tier, block) == (None, bytes(block.data))

    def test_the_tier_keeps_no_reference_to_what_it_was_given(self) -> None:
        data = bytearray(numbered_block(1, self.block_bytes).data)
        block = Block(numbered_key(1), memoryview(data), checksum(data))
        before = bytes(data)
        with closing(self.make_tier()) as tier:
            tier.store([block])
            data[:] = bytes(len(data))
            assert load_one(tier, block) == (None, before)

    def test_bytes_that_are_not_those_of_their_checksum_stay_out(self) -> None:
        good, wrong, last = self.blocks(1, 2, 3)
        bad = Block(wrong.key, wrong.data, wrong.checksum ^ 1)
        with closing(self.make_tier()) as tier:
            assert list(tier.store([good, bad, last]).stored) == [good.key, last.key]
            assert bad.key not in tier
            assert tier.statistics().corruptions == 1
            assert list(tier.store([wrong]).stored) == [wrong.key]

    def test_a_damaged_block_is_a_counted_miss_and_leaves(self) -> None:
        first, second = self.blocks(1, 2)
        with closing(self.make_tier()) as tier:
            tier.store([first, second])
            self.damage(tier, first.key)
            assert load_one(tier, first)[0] is MissReason.CORRUPT
            assert first.key not in tier
            assert tier.statistics().corruptions == 1
            assert load_one(tier, first)[0] is MissReason.NEVER_STORED
            assert load_one(tier, second) == (None, bytes(second.data))
            assert list(tier.store([first]).stored) == [first.key]
            assert load_one(tier, first) == (None, bytes(first.data))

    def test_never_more_than_the_capacity_and_every_eviction_is_reported(self) -> None:
        present: dict[BlockKey, Block] = {}
        evictions = 0
        with closing(self.make_tier()) as tier:
            for start in range(0, 200, 7):
                batch = self.blocks(*range(start, start + 7))
                result = tier.store(batch)
                assert list(result.stored) == [block.key for block in batch]
                present |= {block.key: block for block in batch}
                for key in result.evicted:
                    del present[key]
                evictions += len(result.evicted)
                assert set(inventory_keys(tier)) == set(present)
                statistics = tier.statistics()
                assert statistics.used_bytes <= statistics.capacity_bytes == self.capacity_bytes
                assert (statistics.blocks, statistics.evictions) == (len(present), evictions)
            assert evictions > 0
            assert all(load_one(tier, b) == (None, bytes(b.data)) for b in present.values())

    def test_a_batch_larger_than_the_tier_keeps_its_head(self) -> None:
        batch = self.blocks(*range(60))
        with closing(self.make_tier()) as tier:
            tier.store(self.blocks(*range(100, 105)))
            stored = list(tier.store(batch).stored)
            assert 0 < len(stored) < len(batch)
            assert stored == [block.key for block in batch[: len(stored)]]
            assert set(stored) <= set(inventory_keys(tier))

    def test_a_block_that_can_never_fit_is_left_out(self) -> None:
        huge = numbered_block(1, 2 * self.capacity_bytes)
        small = numbered_block(2, self.block_bytes)
        with closing(self.make_tier()) as tier:
            assert list(tier.store([huge, small]).stored) == [small.key]
            assert huge.key not in tier

    def test_dropped_blocks_are_gone(self) -> None:
        first, second, unknown = self.blocks(1, 2, 3)
        with closing(self.make_tier()) as tier:
            tier.store([first, second])
            assert tier.drop([unknown.key, first.key]) == [first.key]
            assert first.key not in tier
            assert load_one(tier, first)[0] is MissReason.NEVER_STORED
            assert inventory_keys(tier) == [second.key]
            assert tier.drop([first.key]) == []

    def test_information_and_inventory_oldest_first(self) -> None:
        blocks = [numbered_block(i, self.lengths_bytes[i % 6]) for i in (5, 3, 9, 1)]
        with closing(self.make_tier()) as tier:
            for block in blocks:
                tier.store([block])
            expected = [(b.key, b.data.nbytes, b.checksum) for b in blocks]
            inventory = tier.inventory()
            assert [(i.key, i.length_bytes, i.checksum) for i in inventory] == expected
            assert [tier.info(block.key) for block in blocks] == inventory
            assert all(block.key in tier for block in blocks)

    def test_statistics_are_a_snapshot(self) -> None:
        (block,) = self.blocks(1)
        with closing(self.make_tier()) as tier:
            before = tier.statistics()
            tier.store([block])
            load_one(tier, block)
            after = tier.statistics()
            assert (before.blocks, before.hits, before.used_bytes) == (0, 0, 0)
            assert (after.blocks, after.hits, after.errors) == (1, 1, 0)
            assert after.used_bytes >= self.block_bytes
            assert after.kind is tier.kind
            try:
                after.hits = 7  # type: ignore[misc]
            except FrozenInstanceError:
                return
            raise AssertionError("statistics can be changed")

    def test_close_twice(self) -> None:
        tier = self.make_tier()
        tier.store(self.blocks(1))
        tier.close()
        tier.close()

    def test_many_threads_read_right_bytes_or_none(self) -> None:
        """Threads store, load and drop the same blocks in a tier too small for all of them."""
        blocks = self.blocks(*range(48))
        failures: list[str] = []
        with closing(self.make_tier()) as tier:

            def work(seed: int) -> None:
                rng = random.Random(seed)  # noqa: S311
                for _ in range(40):
                    _act(tier, rng, rng.sample(blocks, 5), failures)

            threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
            assert not any(thread.is_alive() for thread in threads)
            assert failures == []
            statistics = tier.statistics()
            assert statistics.used_bytes <= statistics.capacity_bytes
            assert (statistics.corruptions, statistics.errors) == (0, 0)
            assert statistics.blocks == len(tier.inventory())


def _act(tier: Tier, rng: random.Random, batch: Sequence[Block], failures: list[str]) -> None:
    """One step of a thread: usually store or load, sometimes drop."""
    keys = [block.key for block in batch]
    choice = rng.random()
    if choice < 0.45:
        tier.store(batch)
    elif choice < 0.55:
        tier.drop(keys[:2])
    else:
        into = [memoryview(bytearray(block.data.nbytes)) for block in batch]
        reasons = tier.load(keys, into)
        for block, view, reason in zip(batch, into, reasons, strict=True):
            if reason is None and view != block.data:
                failures.append(f"{block.key}: wrong bytes")
            if reason in (MissReason.CORRUPT, MissReason.FAILED):
                failures.append(f"{block.key}: {reason!r}")

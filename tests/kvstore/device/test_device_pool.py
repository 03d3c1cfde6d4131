"""BlockPool against an oracle that keeps lists and searches them."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvstore.core.errors import ResourceExhaustedError
from kvstore.core.ids import BlockHash
from kvstore.tiers.device.pool import BlockPool

NUM_BLOCKS = 6
CHAIN = [BlockHash(bytes([i]) * 32) for i in range(10)]


class PoolMachine(RuleBasedStateMachine):
    """Requests come with a chain (a slice of CHAIN), take blocks, name them and leave."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(NUM_BLOCKS)
        self.held: list[list[int]] = []  # one block table a request
        self.names: dict[int, BlockHash] = {}
        self.idle: list[int] = []  # named, unreferenced blocks, in order of eviction
        self.spent: set[int] = set()  # those of them that go first, and held ones that will
        self.published: set[BlockHash] = set()

    def references(self, block: int) -> int:
        return sum(table.count(block) for table in self.held)

    @rule(count=st.integers(0, NUM_BLOCKS + 2))
    def allocate(self, count: int) -> None:
        taken = {block for table in self.held for block in table}
        if count > NUM_BLOCKS - len(taken):
            before = (self.pool.num_free, self.pool.inventory())
            with pytest.raises(ResourceExhaustedError, match="device blocks wanted"):
                self.pool.allocate(count)
            assert (self.pool.num_free, self.pool.inventory()) == before
            return
        blocks = self.pool.allocate(count)
        assert len(set(blocks)) == count
        assert taken.isdisjoint(blocks)
        free = NUM_BLOCKS - len(taken) - len(self.idle)
        order = sorted(self.idle, key=lambda block: block not in self.spent)
        evicted = order[: max(0, count - free)]
        assert set(evicted) <= set(blocks)
        self.idle = [block for block in self.idle if block not in evicted]
        self.spent -= set(blocks)
        for block in evicted:
            del self.names[block]
        self.held.append(blocks)

    @rule(start=st.integers(0, 8), length=st.integers(1, 4))
    def match(self, start: int, length: int) -> None:
        wanted = CHAIN[start : start + length]
        by_hash = {h: block for block, h in self.names.items()}
        expected = []
        for block_hash in wanted:
            if block_hash not in by_hash:
                break
            expected.append(by_hash[block_hash])
        assert self.pool.match(wanted) == expected
        self.idle = [block for block in self.idle if block not in expected]
        self.spent -= set(expected)
        if expected:
            self.held.append(expected)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def hold(self, data: st.DataObject) -> None:
        table = data.draw(st.sampled_from(self.held))
        self.pool.hold(table)
        self.held.append(list(table))

    @precondition(lambda self: self.held)
    @rule(data=st.data(), start=st.integers(0, 8))
    def name(self, data: st.DataObject, start: int) -> None:
        table = data.draw(st.sampled_from(self.held))
        blocks = [b for b in table if b not in self.names][: len(CHAIN) - start]
        hashes = CHAIN[start : start + len(blocks)]
        self.pool.name(blocks, hashes)
        for block, block_hash in zip(blocks, hashes, strict=True):
            if block_hash not in self.names.values():
                self.names[block] = block_hash

    @precondition(lambda self: self.held)
    @rule(data=st.data(), evict_first=st.booleans())
    def release(self, data: st.DataObject, evict_first: bool) -> None:
        table = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        self.pool.release(table, evict_first=evict_first)
        if evict_first:
            self.spent |= set(table)
        for block in reversed(table):
            if self.references(block) == 0 and block in self.names:
                self.idle.append(block)

    @rule()
    def drain(self) -> None:
        stored, removed = self.pool.drain_events()
        assert self.published.isdisjoint(stored)
        assert self.published.issuperset(removed)
        self.published = (self.published | set(stored)) - set(removed)
        assert self.published == set(self.names.values())
        assert self.pool.drain_events() == ([], [])

    @invariant()
    def agrees(self) -> None:
        taken = {block for table in self.held for block in table}
        assert self.pool.num_free == NUM_BLOCKS - len(taken)
        assert sorted(self.pool.inventory()) == sorted(self.names.values())


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_the_tail_of_a_block_table_is_evicted_first() -> None:
    pool = BlockPool(3)
    table = pool.allocate(3)
    pool.name(table, CHAIN[:3])
    pool.release(table)
    assert pool.allocate(1) == [table[2]]
    assert pool.match(CHAIN[:3]) == table[:2]


def test_a_prefix_in_use_outlives_what_came_after_it() -> None:
    pool = BlockPool(4)
    first, second = pool.allocate(2), pool.allocate(2)
    pool.name(first, CHAIN[:2])
    pool.name(second, CHAIN[2:4])
    pool.release(first)
    pool.release(second)
    pool.release(pool.match(CHAIN[:2]))  # used again: now the youngest
    assert pool.allocate(2) == [second[1], second[0]]


def test_a_second_block_of_the_same_content_stays_nameless_and_is_freed_at_once() -> None:
    pool = BlockPool(2)
    original, copy = pool.allocate(1), pool.allocate(1)
    pool.name(original, CHAIN[:1])
    pool.name(copy, CHAIN[:1])
    pool.release(original)
    pool.release(copy)
    assert pool.allocate(1) == copy
    assert pool.match(CHAIN[:1]) == original


def test_stored_and_removed_between_drains_is_no_event() -> None:
    pool = BlockPool(1)
    for block_hash in CHAIN[:3]:
        block = pool.allocate(1)
        pool.name(block, [block_hash])
        pool.release(block)
    assert pool.drain_events() == ([CHAIN[2]], [])


def test_misuse_is_a_programmer_error() -> None:
    with pytest.raises(AssertionError, match="not held"):
        BlockPool(2).hold([0])
    pool = BlockPool(2)
    (block,) = pool.allocate(1)
    pool.name([block], CHAIN[:1])
    with pytest.raises(AssertionError, match="already has another name"):
        pool.name([block], CHAIN[1:2])
    pool.release([block])
    with pytest.raises(AssertionError, match="not held"):
        pool.release([block])
    with pytest.raises(AssertionError, match="not held"):
        pool.name([block], CHAIN[:1])


def test_repr_tells_what_the_blocks_do() -> None:
    pool = BlockPool(5)
    pool.allocate(2)
    cached = pool.allocate(1)
    pool.name(cached, CHAIN[:1])
    pool.release(cached)
    assert repr(pool) == "BlockPool(5 blocks: 2 held, 1 cached, 2 free)"

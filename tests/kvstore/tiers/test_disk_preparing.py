"""Blocks on their way to the writer: in order, in bounded parts, one part ahead."""

from __future__ import annotations

import threading
from contextlib import closing

import pytest

from kvstore.codecs.registry import CODECS
from kvstore.testing.tier_conformance import numbered_block
from kvstore.tiers.base import Block
from kvstore.tiers.disk.preparing import Encoder, Preparer, parts

MIB = 1 << 20


def sized(number: int, length: int) -> Block:
    """Its bytes do not matter."""
    return Block(numbered_block(number, 1).key, memoryview(bytes(length)), 0)


@pytest.mark.parametrize("lengths", [[], [1], [MIB] * 40, [9 * MIB, 1, 9 * MIB], [100] * 5000])
def test_parts_are_all_blocks_in_order_and_bounded(lengths: list[int]) -> None:
    blocks = [sized(i, length) for i, length in enumerate(lengths)]
    found = list(parts(blocks))
    assert [block for part in found for block in part] == blocks
    for part in found:
        assert len(part) == 1 or sum(block.data.nbytes for block in part) <= 8 * MIB


def test_the_first_part_is_small_for_the_disk_waits_for_it() -> None:
    found = list(parts([sized(i, MIB) for i in range(40)]))
    assert [len(part) for part in found][:4] == [2, 4, 8, 8]


def test_a_part_is_prepared_while_the_one_before_it_is_written() -> None:
    encoder = Encoder(CODECS["raw"])
    prepared, payload = set(), encoder.payload
    second = threading.Event()

    def watch(block: Block):  # type: ignore[no-untyped-def]
        prepared.add(block.key)
        if len(prepared) == 4:
            second.set()
        return payload(block)

    encoder.payload = watch  # type: ignore[method-assign]
    blocks = [numbered_block(i, MIB) for i in range(8)]
    with closing(Preparer(encoder)) as preparer, closing(preparer.prepare(blocks)) as ahead:
        first = next(ahead)
        assert [p.block.key for p in first.payloads] == [block.key for block in blocks[:2]]
        assert second.wait(20), "blocks 2 and on, without being asked for"
        rest = [p.block.key for part in ahead for p in part.payloads]
        assert rest == [block.key for block in blocks[2:]]


def test_whoever_stops_early_gets_the_blocks_back() -> None:
    """No thread reads them any more: their memory may be given another use."""
    encoder = Encoder(CODECS["raw"])
    running, payload, go_on = threading.Event(), encoder.payload, threading.Event()
    active = [0]

    def slow(block: Block):  # type: ignore[no-untyped-def]
        if block.key not in first_keys:
            active[0] += 1
            running.set()
            go_on.wait(0.2)
            active[0] -= 1
        return payload(block)

    encoder.payload = slow  # type: ignore[method-assign]
    blocks = [numbered_block(i, 2 * MIB) for i in range(3)]
    first_keys = {blocks[0].key}
    with closing(Preparer(encoder)) as preparer:
        ahead = preparer.prepare(blocks)
        next(ahead)
        assert running.wait(20)
        ahead.close()
        assert active == [0]


def test_blocks_that_are_not_what_their_checksum_says_are_left_out_and_counted() -> None:
    good = [numbered_block(i, 100) for i in range(6)]
    bad = [Block(block.key, block.data, block.checksum ^ 1) for block in good[2:4]]
    with closing(Preparer(Encoder(CODECS["raw"]))) as preparer:
        (part,) = preparer.prepare([*good[:2], *bad, *good[4:]])
    assert part.corrupt == 2
    assert [p.block.key for p in part.payloads] == [b.key for b in [*good[:2], *good[4:]]]

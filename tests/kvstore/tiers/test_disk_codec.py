"""A disk tier that keeps blocks smaller than they were: they come back with the codec's error, and
with the length and checksum that the tier says they have."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest

from kvstore.codecs.dtypes import from_float32, to_float32
from kvstore.codecs.frame import encoded_bytes
from kvstore.codecs.registry import CODECS
from kvstore.core.checksum import checksum
from kvstore.core.ids import BlockHash, BlockKey, LayoutFingerprint
from kvstore.core.layout import KVLayout
from kvstore.testing.tier_conformance import load_one, numbered_block
from kvstore.tiers.base import Block, MissReason
from kvstore.tiers.disk.record import Encoded, RecordHeader
from kvstore.tiers.disk.tier import DiskTier

LAYOUT = KVLayout(4, 2, 32, 32, "bfloat16")
LOSSY = [name for name in CODECS if name != "raw"]
CAPACITY = 4 << 20


def kv_block(number: int, layout: KVLayout = LAYOUT, fingerprint: bytes | None = None) -> Block:
    values = np.random.default_rng(number).standard_normal(layout.shape).astype(np.float32)
    data = memoryview(from_float32(values, layout.dtype)).cast("B")
    return Block(key(number, fingerprint or layout.fingerprint), data, checksum(data))


def key(number: int, fingerprint: bytes = LAYOUT.fingerprint) -> BlockKey:
    return BlockKey(LayoutFingerprint(fingerprint), BlockHash(number.to_bytes(32, "big")))


@contextmanager
def open_tier(folder: Path, codec: str = "int8", **settings: int) -> Iterator[DiskTier]:
    with closing(DiskTier(folder, CAPACITY, codec=codec, **settings)) as tier:  # type: ignore[arg-type]
        tier.learn_layout(LAYOUT.fingerprint, LAYOUT)
        yield tier


def comes_back(tier: DiskTier, block: Block) -> bytes:
    """Its bytes, which are those that the tier promises."""
    info = tier.info(block.key)
    assert info is not None
    reason, data = load_one(tier, block)
    assert reason is None
    assert (info.length_bytes, info.checksum) == (len(data), checksum(data))
    return data


def check_error(codec: str, block: Block, data: bytes) -> None:
    before, after = (
        to_float32(np.frombuffer(part, np.uint16).reshape(LAYOUT.shape), "bfloat16")
        for part in (block.data, data)
    )
    assert np.all(np.abs(after - before) <= CODECS[codec].error_bound(before, LAYOUT))
    assert data != block.data


@pytest.mark.parametrize("codec", LOSSY)
def test_blocks_come_back_with_the_error_of_the_codec(tmp_path: Path, codec: str) -> None:
    blocks = [kv_block(number) for number in range(10)]
    with open_tier(tmp_path, codec) as tier:
        assert list(tier.store(blocks).stored) == [block.key for block in blocks]
        for block in blocks:
            check_error(codec, block, comes_back(tier, block))
        stored = 4096 + -(-encoded_bytes(CODECS[codec], LAYOUT) // 4096) * 4096
        assert tier.statistics().used_bytes == 10 * stored
        assert stored < LAYOUT.block_bytes


def test_raw_is_byte_exact_and_needs_no_layout(tmp_path: Path) -> None:
    with open_tier(tmp_path, "raw") as tier:
        tier.store([kv_block(1)])
        assert comes_back(tier, kv_block(1)) == kv_block(1).data
        assert tier.statistics().used_bytes == 4096 + LAYOUT.block_bytes


def test_a_restart_decodes_without_knowing_layouts_whatever_the_codec_is_then(
    tmp_path: Path,
) -> None:
    seen = {}
    for number, codec in enumerate([*CODECS, "raw"]):
        with open_tier(tmp_path, codec) as tier:
            tier.store([kv_block(number)])
            seen[number] = comes_back(tier, kv_block(number))
    for codec in CODECS:
        with closing(DiskTier(tmp_path, CAPACITY, codec=codec)) as tier:
            for number, data in seen.items():
                assert comes_back(tier, kv_block(number)) == data
            tier.store([kv_block(0)])
            assert comes_back(tier, kv_block(0)) == seen[0], "what is there stays as it is"


def test_what_the_codec_knows_nothing_of_is_stored_as_it_is(tmp_path: Path) -> None:
    other = KVLayout(4, 2, 32, 16, "bfloat16")
    unknown, odd = kv_block(1, other), kv_block(2, other, fingerprint=LAYOUT.fingerprint)
    with open_tier(tmp_path) as tier:
        assert len(tier.store([unknown, odd]).stored) == 2
        for block in (unknown, odd):
            assert comes_back(tier, block) == block.data


def test_a_fingerprint_of_a_tenant_is_learned_like_any_other(tmp_path: Path) -> None:
    folded = b"a tenant's own 1"
    with open_tier(tmp_path) as tier:
        block = kv_block(1, fingerprint=folded)
        tier.store([block])
        assert comes_back(tier, block) == block.data
        tier.learn_layout(LayoutFingerprint(folded), LAYOUT)
        block = kv_block(2, fingerprint=folded)
        tier.store([block])
        check_error("int8", block, comes_back(tier, block))


@pytest.mark.parametrize("codec", LOSSY)
def test_values_that_are_not_finite_come_back_exactly(tmp_path: Path, codec: str) -> None:
    values = np.random.default_rng(0).standard_normal(LAYOUT.shape).astype(np.float32)
    values[1, 0, 1, 5, 7] = np.inf
    data = memoryview(from_float32(values, "bfloat16")).cast("B")
    block = Block(key(1), data, checksum(data))
    with open_tier(tmp_path, codec) as tier:
        assert list(tier.store([block]).stored) == [block.key]
        assert comes_back(tier, block) == data


def test_a_layout_that_a_codec_gains_nothing_from_is_stored_as_it_is(tmp_path: Path) -> None:
    layout = KVLayout(1, 1, 1, 4, "float16")
    with open_tier(tmp_path, "kivi2") as tier:
        tier.learn_layout(layout.fingerprint, layout)
        block = kv_block(1, layout)
        tier.store([block])
        assert comes_back(tier, block) == block.data


def test_bytes_that_are_not_those_of_their_checksum_are_not_encoded(tmp_path: Path) -> None:
    block = kv_block(1)
    with open_tier(tmp_path) as tier:
        assert list(tier.store([Block(block.key, block.data, block.checksum ^ 1)]).stored) == []
        assert tier.statistics().corruptions == 1


def test_blocks_in_use_are_carried_forward_as_they_are_stored(tmp_path: Path) -> None:
    """Not decoded and encoded again: the error does not grow."""
    with open_tier(tmp_path, "int4", segment_bytes=64 << 10) as tier:
        tier.store([kv_block(0)])
        first = comes_back(tier, kv_block(0))
        evicted = set()
        for number in range(1, 400):
            evicted |= set(tier.store([kv_block(number)]).evicted)
            assert comes_back(tier, kv_block(0)) == first
        assert len(evicted) > 100
        assert tier.statistics().used_bytes <= CAPACITY


def test_many_threads_decode_at_a_time(tmp_path: Path) -> None:
    blocks = [kv_block(number) for number in range(32)]
    with open_tier(tmp_path) as tier:
        tier.store(blocks)
        expected = [comes_back(tier, block) for block in blocks]
        into = [memoryview(bytearray(LAYOUT.block_bytes)) for _ in blocks]
        assert tier.load([block.key for block in blocks], into) == [None] * 32
        assert [bytes(view) for view in into] == expected


def record_bytes(folder: Path) -> tuple[Path, bytes]:
    (path,) = folder.glob("segment-*")
    return path, path.read_bytes()


def test_damage_anywhere_in_an_encoded_record_is_a_miss(tmp_path: Path) -> None:
    """Record header, codec header, scales, codes; but not the padding, which nobody reads."""
    block = kv_block(1)
    with open_tier(tmp_path, "int4") as tier:
        tier.store([block])
        expected = comes_back(tier, block)
    path, clean = record_bytes(tmp_path)
    payload = encoded_bytes(CODECS["int4"], LAYOUT)
    places = [*range(104), *range(4096, 4096 + 70), *range(4200, 4096 + payload, 97)]
    for place in [*places, 4096 + payload - 1]:
        damaged = bytearray(clean)
        damaged[place] ^= 0x40
        path.write_bytes(damaged)
        with closing(DiskTier(tmp_path, CAPACITY)) as tier:
            if block.key in tier:
                assert load_one(tier, block)[0] is MissReason.CORRUPT, place
            assert tier.statistics().corruptions == 1, place
    padded = bytearray(clean)
    padded[4096 + payload] ^= 1
    path.write_bytes(padded)
    with closing(DiskTier(tmp_path, CAPACITY)) as tier:
        assert comes_back(tier, block) == expected


def test_a_record_whose_checksums_agree_but_that_does_not_decode_is_a_miss(tmp_path: Path) -> None:
    """Written by somebody else, or by a later version."""
    junk = b"junk" * 2000
    header = RecordHeader(key(1), LAYOUT.block_bytes, 0, 1, 77, Encoded(len(junk), checksum(junk)))
    record = header.encode().ljust(4096, b"\0") + junk.ljust(8192, b"\0")
    (tmp_path / "segment-0000000000.kv").write_bytes(record)
    with closing(DiskTier(tmp_path, CAPACITY)) as tier:
        assert load_one(tier, kv_block(1))[0] is MissReason.CORRUPT
        assert tier.statistics().corruptions == 1


def test_layouts_are_remembered_up_to_a_bound(tmp_path: Path) -> None:
    with closing(DiskTier(tmp_path, CAPACITY, codec="int8")) as tier:
        for number in range(1024):
            tier.learn_layout(LayoutFingerprint(number.to_bytes(16, "big")), LAYOUT)
        tier.learn_layout(LAYOUT.fingerprint, LAYOUT)
        tier.store([kv_block(1)])
        assert comes_back(tier, kv_block(1)) == kv_block(1).data


def test_blocks_of_any_kind_in_one_batch(tmp_path: Path) -> None:
    mixed = [kv_block(0), numbered_block(1, 5000), kv_block(2), numbered_block(3, 70_000)]
    with open_tier(tmp_path) as tier:
        assert len(tier.store(mixed).stored) == 4
        into = [memoryview(bytearray(block.data.nbytes)) for block in mixed]
        assert tier.load([block.key for block in mixed], into) == [None] * 4
        assert [into[1], into[3]] == [mixed[1].data, mixed[3].data]
    shutil.rmtree(tmp_path)

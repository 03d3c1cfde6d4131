"""Layouts, their shards and their parts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.core.errors import InvalidArgumentError
from kvstore.core.layout import HeadRange, KVLayout
from kvstore.core.ranges import BlockRange

LAYOUT = KVLayout(num_layers=4, num_kv_heads=8, head_dim=2, block_size_tokens=3, dtype="bfloat16")
DEGREES = [(8, 1), (8, 2), (8, 4), (8, 8), (8, 16), (1, 4), (6, 3), (6, 12)]


@pytest.mark.parametrize(("heads", "tp"), DEGREES)
def test_the_ranks_hold_every_head_and_as_often_as_they_must(heads, tp):
    layout = KVLayout(1, heads, 1, 1, "float32")
    held = [head for rank in range(tp) for head in range(*_ends(layout.heads_of(rank, tp)))]
    assert sorted(held) == sorted(list(range(heads)) * max(tp // heads, 1))


def _ends(heads: HeadRange) -> tuple[int, int]:
    return heads.first, heads.last


@pytest.mark.parametrize(("rank", "tp"), [(-1, 2), (2, 2), (0, 0), (0, 3), (0, 12)])
def test_ranks_that_cannot_share_the_heads_are_refused(rank, tp):
    with pytest.raises(InvalidArgumentError, match=r"rank|tp"):
        LAYOUT.heads_of(rank, tp)


def test_a_shard_is_named_by_its_heads_alone():
    shards = [LAYOUT.shard(rank, 4) for rank in range(4)]
    assert len({shard.fingerprint for shard in [LAYOUT, *shards]}) == 5
    assert [shard.shape[2] for shard in shards] == [2] * 4
    assert sum(shard.block_bytes for shard in shards) == LAYOUT.block_bytes
    assert LAYOUT.shard(0, 1) is LAYOUT
    assert LAYOUT.shard(5, 16) == LAYOUT.shard(4, 16), "two ranks of one head"
    smaller = KVLayout(4, 2, 2, 3, "bfloat16")
    assert smaller.fingerprint not in {shard.fingerprint for shard in shards}


def test_a_shard_has_no_shards_and_heads_must_be_the_models():
    with pytest.raises(InvalidArgumentError, match="shards of the whole"):
        LAYOUT.shard(0, 2).shard(0, 2)
    with pytest.raises(InvalidArgumentError, match="first_kv_head"):
        KVLayout(1, 2, 1, 1, "float32", first_kv_head=1, total_kv_heads=2)
    with pytest.raises(InvalidArgumentError, match="first_kv_head"):
        KVLayout(1, 2, 1, 1, "float32", first_kv_head=1)


def test_the_fingerprint_of_whole_blocks_is_what_it_was():
    layout = KVLayout(2, 8, 4, 16, "bfloat16")
    assert layout.fingerprint.hex() == "a1ec2286183e13ed5e33f1a4d0635ee4"


def test_groups_of_layers_that_are_alike_have_names_of_their_own():
    """Else the KV of one group's layers would be read as that of another's."""
    groups = [(0, 1, 2, 3), (0, 1, 2, 4), (4, 5, 6, 7), (0, 12, 23, 45), (0, 1, 22, 345)]
    layouts = [LAYOUT, *(replace(LAYOUT, layers=layers) for layers in groups)]
    layouts += [layout.shard(1, 2) for layout in layouts]
    assert len({layout.fingerprint for layout in layouts}) == len(layouts)
    assert layouts[-1].layers == groups[-1]


@pytest.mark.parametrize("layers", [(), (0,), (0, 1), (1, 1, 2, 3), (3, 2, 1, 0), (-1, 0, 1, 2)])
def test_layers_are_as_many_as_there_are_and_increase(layers):
    with pytest.raises(InvalidArgumentError, match="layers must be 4 of the model's"):
        replace(LAYOUT, layers=layers)


def ranges(size: int) -> st.SearchStrategy[tuple[int, int] | None]:
    ends = st.lists(st.integers(0, size), min_size=2, max_size=2, unique=True)
    return st.none() | ends.map(lambda pair: (min(pair), max(pair)))


@given(ranges(4), ranges(8), ranges(3))
def test_a_part_selects_what_it_says(layers, heads, tokens):
    part = BlockRange(layers, heads, tokens)
    whole = np.arange(np.prod(LAYOUT.shape)).reshape(LAYOUT.shape)
    selected = whole[part.index(LAYOUT)]
    assert selected.shape == part.shape(LAYOUT)
    assert selected.size * 2 == part.length_bytes(LAYOUT)
    (a, b), (c, d), (e, f) = layers or (0, 4), heads or (0, 8), tokens or (0, 3)
    assert (selected == whole[a:b, :, c:d, e:f]).all()


@pytest.mark.parametrize("field", ["layers", "heads", "tokens"])
@pytest.mark.parametrize("ends", [(0, 9), (1, 1), (2, 1), (-1, 2)])
def test_a_part_outside_of_the_layout_names_the_field(field, ends):
    with pytest.raises(InvalidArgumentError, match=rf"part\.{field}"):
        BlockRange(**{field: ends}).index(LAYOUT)

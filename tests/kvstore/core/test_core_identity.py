from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.core.errors import InvalidArgumentError
from kvstore.core.identity import ModelIdentity, salted_root
from kvstore.core.layout import DTYPE_BYTES, KVLayout

LAYOUT = KVLayout(num_layers=4, num_kv_heads=2, head_dim=64, block_size_tokens=16, dtype="bfloat16")
IDENTITY = ModelIdentity(weights="sha256:00ff", architecture='{"rope_theta":10000}', layout=LAYOUT)
OTHER_LAYOUT_VALUE = {
    "num_layers": 5,
    "num_kv_heads": 4,
    "head_dim": 128,
    "block_size_tokens": 32,
    "dtype": "float16",
    "first_kv_head": 2,
    "total_kv_heads": 6,
    "layers": (0, 1, 2, 3),
}
SHARD = replace(LAYOUT, total_kv_heads=6)
"""Only a shard can begin with another head."""
LAYOUTS = st.builds(KVLayout, *[st.integers(1, 64)] * 4, st.sampled_from(sorted(DTYPE_BYTES)))


def test_golden_root_and_fingerprint() -> None:
    """Two releases must agree on these, or a rolling upgrade loses every cached block."""
    assert LAYOUT.fingerprint.hex() == "f710e2dfb8e99095d3a5721fb82d114e"
    assert (
        IDENTITY.root().hex() == "c0d887b5afa9b2aba1e9147f37c82804d6fcd781015bb162336641a28b98c433"
    )


@pytest.mark.parametrize("name", [field.name for field in fields(ModelIdentity)])
def test_every_field_changes_the_root(name: str) -> None:
    other = replace(LAYOUT, num_layers=9) if name == "layout" else "something else"
    assert replace(IDENTITY, **{name: other}).root() != IDENTITY.root()


@pytest.mark.parametrize("name", [field.name for field in fields(KVLayout)])
def test_every_field_of_the_layout_changes_fingerprint_and_root(name: str) -> None:
    layout = SHARD if name == "first_kv_head" else LAYOUT
    other = replace(layout, **{name: OTHER_LAYOUT_VALUE[name]})
    assert other.fingerprint != layout.fingerprint
    assert replace(IDENTITY, layout=other).root() != replace(IDENTITY, layout=layout).root()


def test_whoever_knows_the_root_knows_that_of_every_salt() -> None:
    for salt in ("", "team-a", "team-b"):
        assert salted_root(IDENTITY.root(), salt) == replace(IDENTITY, tenant_salt=salt).root()
    assert len({salted_root(IDENTITY.root(), salt) for salt in ("", "team-a", "team-b")}) == 3


def test_a_value_counts_for_the_field_it_stands_in() -> None:
    names = [f.name for f in fields(ModelIdentity) if f.name != "layout"]
    roots = {replace(IDENTITY, **{name: "moved"}).root() for name in names}
    assert len(roots) == len(names)


def test_equal_identities_have_equal_roots() -> None:
    assert replace(IDENTITY, layout=replace(LAYOUT)).root() == IDENTITY.root()
    assert len(IDENTITY.root()) == 32
    assert len(LAYOUT.fingerprint) == 16


@given(LAYOUTS)
def test_layers_are_consecutive_ranges_of_the_block(layout: KVLayout) -> None:
    ranges = [layout.layer_range(i, i + 1) for i in range(layout.num_layers)]
    end = 0
    for offset, length in ranges:
        assert offset == end
        end = offset + length
    assert end == layout.block_bytes == layout.token_bytes * layout.block_size_tokens
    assert layout.layer_range(0, layout.num_layers) == (0, layout.block_bytes)


@given(LAYOUTS)
def test_block_bytes_follow_from_the_shape(layout: KVLayout) -> None:
    elements = 1
    for size in layout.shape:
        elements *= size
    assert layout.block_bytes == elements * DTYPE_BYTES[layout.dtype]
    assert layout.shape[1] == 2


@pytest.mark.parametrize(("first", "last"), [(-1, 1), (0, 0), (2, 1), (0, 5)])
def test_ranges_outside_of_the_block_are_programmer_errors(first: int, last: int) -> None:
    with pytest.raises(AssertionError):
        LAYOUT.layer_range(first, last)


@pytest.mark.parametrize("name", ["num_layers", "num_kv_heads", "head_dim", "block_size_tokens"])
@pytest.mark.parametrize("value", [0, -1])
def test_sizes_must_be_positive(name: str, value: int) -> None:
    with pytest.raises(InvalidArgumentError, match=f"{name} must be at least 1, got {value}"):
        replace(LAYOUT, **{name: value})


def test_the_dtype_must_be_known() -> None:
    with pytest.raises(InvalidArgumentError, match=r"dtype must be one of .* got 'int3'"):
        replace(LAYOUT, dtype="int3")

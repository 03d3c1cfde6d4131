import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.core.errors import InvalidArgumentError
from kvstore.core.hashing import block_hashes

ROOT = bytes(range(32))
TOKENS = st.lists(st.integers(0, 0xFFFFFFFF), max_size=40)


def test_golden_vectors() -> None:
    """Two releases must agree on these, or a rolling upgrade loses every cached block."""
    hashes = block_hashes(ROOT, [0, 1, 2, 3, 151_643, 0xFFFFFFFF, 7], 3)
    assert [h.hex() for h in hashes] == [
        "2dff5ffd3e76d298b31efa8a736cee10b1bded6c68d205d96d1caf7f35dd7438",
        "7a3d67fd6476ede88507c3f9c186e5524122bdee39ba898adbd5a4b006365a46",
    ]


def test_the_chain_is_what_the_documentation_says() -> None:
    previous, expected = ROOT, []
    for start in (0, 2):
        tokens = b"".join(t.to_bytes(4, "little") for t in (start + 10, start + 11))
        previous = hashlib.sha256(b"kvstore.block.v1" + previous + tokens).digest()
        expected.append(previous)
    assert block_hashes(ROOT, [10, 11, 12, 13, 14], 2) == expected


@given(TOKENS, st.integers(1, 8))
def test_only_full_blocks_have_a_hash(tokens: list[int], size: int) -> None:
    hashes = block_hashes(ROOT, tokens, size)
    assert len(hashes) == len(tokens) // size
    assert len(set(hashes)) == len(hashes)


@given(TOKENS, st.integers(1, 8), st.integers(0, 10))
def test_a_chain_goes_on_from_its_parent(tokens: list[int], size: int, blocks: int) -> None:
    whole = block_hashes(ROOT, tokens, size)
    head, tail = tokens[: blocks * size], tokens[blocks * size :]
    first = block_hashes(ROOT, head, size)
    parent = first[-1] if first else None
    assert first + block_hashes(ROOT, tail, size, parent=parent) == whole


@given(TOKENS.filter(lambda t: len(t) >= 4), st.data())
def test_a_changed_token_changes_its_block_and_all_after(
    tokens: list[int], data: st.DataObject
) -> None:
    place = data.draw(st.integers(0, len(tokens) // 4 * 4 - 1))
    changed = list(tokens)
    changed[place] ^= 1 << data.draw(st.integers(0, 31))
    before, after = block_hashes(ROOT, tokens, 4), block_hashes(ROOT, changed, 4)
    same = [a == b for a, b in zip(before, after, strict=True)]
    assert same == [i < place // 4 for i in range(len(same))]


def test_the_root_and_the_block_size_count() -> None:
    tokens = list(range(8))
    hashes = block_hashes(ROOT, tokens, 4)
    assert not set(hashes) & set(block_hashes(bytes(32), tokens, 4))
    assert not set(hashes) & set(block_hashes(ROOT, tokens, 2))


@pytest.mark.parametrize(
    "tokens",
    [
        np.arange(6, dtype=np.int64),
        np.arange(6, dtype=np.uint32),
        np.arange(12, dtype=np.int32)[::2] // 2,
        np.arange(6, dtype=">i4"),
        tuple(range(6)),
    ],
)
def test_any_sequence_of_integers_will_do(tokens: object) -> None:
    assert block_hashes(ROOT, tokens, 3) == block_hashes(ROOT, [0, 1, 2, 3, 4, 5], 3)


def test_no_tokens() -> None:
    assert block_hashes(ROOT, [], 4) == []


@pytest.mark.parametrize("tokens", [[-1], [1 << 32], [1.5], ["a"], [[1, 2]], [True]])
def test_what_is_no_token_is_refused(tokens: list[object]) -> None:
    with pytest.raises(InvalidArgumentError, match="token ids must"):
        block_hashes(ROOT, tokens, 1)

"""Every kind of memory goes in and out, never copied, and what cannot be used is named."""

from __future__ import annotations

import array
import subprocess
import sys

import numpy as np
import pytest
import torch

import kvstore
from kvstore.client.buffers import Expected, byte_view, readable, writable
from kvstore.core.errors import InvalidArgumentError, LayoutMismatchError
from kvstore.core.ids import BlockHash, BlockKeys
from kvstore.core.layout import KVLayout

LAYOUTS = {
    dtype: KVLayout(num_layers=2, num_kv_heads=2, head_dim=4, block_size_tokens=3, dtype=dtype)
    for dtype in ("float32", "bfloat16", "float16")
}
BF16 = LAYOUTS["bfloat16"]


@pytest.fixture(scope="module")
def store():
    with kvstore.open(host="16MiB", layouts=list(LAYOUTS.values())) as store:
        yield store


def keys_of(layout: KVLayout, count: int, name: str) -> BlockKeys:
    hashes = [BlockHash(name.encode().ljust(31, b".") + bytes([i])) for i in range(count)]
    return BlockKeys(layout.fingerprint, hashes)


@pytest.mark.parametrize("dtype", LAYOUTS)
@pytest.mark.parametrize("stacked", [True, False])
def test_tensors_go_in_and_out(store, dtype, stacked):
    layout = LAYOUTS[dtype]
    keys = keys_of(layout, 3, f"tensors {dtype} {stacked}")
    blocks = torch.randn(3, *layout.shape).to(getattr(torch, dtype))
    into = torch.zeros_like(blocks)
    assert store.put(keys, blocks if stacked else list(blocks)) == [0, 1, 2]
    assert store.get(keys, into if stacked else list(into)) == {}
    assert torch.equal(into, blocks)
    with store.acquire(keys) as lease:
        for found in lease.found:
            assert torch.equal(found.torch(layout), blocks[found.index])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_arrays_go_in_and_out(store, dtype):
    layout = LAYOUTS[dtype]
    keys = keys_of(layout, 2, f"arrays {dtype}")
    blocks = np.random.default_rng(0).standard_normal((2, *layout.shape)).astype(dtype)
    into = np.zeros_like(blocks)
    store.put(keys, blocks)
    assert store.get(keys, into) == {}
    assert (into == blocks).all()
    with store.acquire(keys) as lease:
        found = lease.found[1].numpy(layout)
        assert found.shape == layout.shape
        assert (found == blocks[1]).all()
        with pytest.raises(ValueError, match="read-only"):
            found[0] = 0
        del found


def test_buffers_of_any_kind_go_in_and_out(store):
    data = [bytes(range(96)), bytearray(range(96)), array.array("f", range(24))]
    keys = keys_of(BF16, 3, "any kind")
    assert store.put(keys, data) == [0, 1, 2]
    into = [bytearray(96), array.array("d", bytes(96)), np.zeros((2, 6), np.float64)]
    keys_into = [memoryview(into[0]), into[1], into[2].view(np.uint8)]
    assert store.get(keys, keys_into) == {}
    assert [bytes(memoryview(item).cast("B")) for item in into] == [
        bytes(memoryview(d).cast("B")) for d in data
    ]


def test_reserved_blocks_are_written_in_place(store):
    keys = keys_of(BF16, 2, "in place")
    wanted = torch.randn(2, *BF16.shape).to(torch.bfloat16)
    with store.reserve(keys, BF16.block_bytes) as reservation:
        for block in reservation.blocks:
            block.torch(BF16).copy_(wanted[block.index])
        reservation.commit()
    into = torch.zeros_like(wanted)
    assert store.get(keys, into) == {}
    assert torch.equal(into, wanted)
    half = LAYOUTS["float16"]
    with store.reserve(keys_of(half, 1, "in place"), half.block_bytes) as reservation:
        array_ = reservation.blocks[0].numpy(half)
        array_[:] = 7
        assert bytes(reservation.blocks[0].view) == np.full(half.shape, 7, np.float16).tobytes()


def test_nothing_is_copied():
    tensor = torch.zeros(4, 4, dtype=torch.bfloat16)
    byte_view("into", tensor)[0] = 255
    assert tensor[0, 0] != 0
    array_ = np.zeros((3, 5), np.float32)
    writable("into", array_, 3, None)[2][-1] = 255
    assert array_[2, 4] != 0


class OnlyDLPack:
    """As an array of another library."""

    def __init__(self, inner):
        self._inner = inner

    def __dlpack__(self, **options):
        return self._inner.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._inner.__dlpack_device__()


def test_other_arrays_come_through_dlpack():
    inner = np.arange(12, dtype=np.float32)
    view = byte_view("blocks", OnlyDLPack(inner))
    assert bytes(view) == inner.tobytes()


EXPECTED = Expected("bfloat16", BF16.shape)
WRONG = {
    r"blocks\[0\].*\.contiguous\(\)": [torch.zeros(4, 4).t()],
    r"blocks\[0\].*ascontiguousarray": [np.zeros((4, 4))[:, ::2]],
    r"blocks\[0\] must be contiguous": [memoryview(bytes(8))[::2]],
    r"blocks\[0\] is on meta.*\.cpu\(\)": [torch.zeros(4, device="meta")],
    r"blocks\[0\]: int has no buffer": [7],
    r"blocks\[0\] must not be empty": [b""],
    r"blocks\[0\] has dtype float32.*bfloat16": [torch.zeros(BF16.shape)],
    r"blocks\[0\] has shape \[2, 2, 3, 2, 4\].*\[2, 2, 2, 3, 4\]": [
        torch.zeros(2, 2, 3, 2, 4, dtype=torch.bfloat16)
    ],
    r"blocks: 2 buffers for 1 keys": [b"a", b"b"],
    r"blocks: give a list": b"one block",
    r"blocks has shape \[1, 96\]": torch.zeros(1, 96, dtype=torch.bfloat16),
}


@pytest.mark.parametrize("words", WRONG)
def test_what_cannot_be_used_is_named_with_its_remedy(words):
    with pytest.raises(InvalidArgumentError, match=words):
        readable("blocks", WRONG[words], 1, EXPECTED)


@pytest.mark.parametrize(
    "target", [bytes(96), np.broadcast_to(np.uint8(0), (96,)).copy().data.toreadonly()]
)
def test_read_only_memory_is_no_target(target):
    with pytest.raises(InvalidArgumentError, match=r"into\[0\] is read-only"):
        writable("into", [target], 1, None)


def test_views_in_another_layout_are_refused(store):
    keys = keys_of(BF16, 1, "another layout")
    store.put(keys, [bytes(BF16.block_bytes)])
    with store.acquire(keys) as lease:
        with pytest.raises(LayoutMismatchError, match="384 bytes"):
            lease.found[0].torch(LAYOUTS["float32"].shard(0, 1))
        with pytest.raises(InvalidArgumentError, match="numpy has no bfloat16"):
            lease.found[0].numpy(BF16)


def test_a_buffer_that_is_too_small_says_how_large_it_must_be(store):
    keys = keys_of(BF16, 1, "too small")
    store.put(keys, [bytes(BF16.block_bytes)])
    with pytest.raises(InvalidArgumentError, match=r"95 bytes, and the block.*192"):
        store.get(keys, [bytearray(95)])


def test_the_client_needs_no_torch():
    script = (
        "import sys, kvstore\n"
        "from kvstore.core.ids import *\n"
        "keys = BlockKeys(LayoutFingerprint(bytes(16)), [BlockHash(bytes(32))])\n"
        "with kvstore.open(host='4MiB') as store:\n"
        "    store.put(keys, [b'abc']); into = bytearray(3); store.get(keys, [into])\n"
        "print('torch' in sys.modules, bytes(into))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "False b'abc'", done.stderr

from __future__ import annotations

import pytest
import torch

from kvstore.core.errors import ResourceExhaustedError
from kvstore.core.layout import KVLayout
from kvstore.tiers.device.cache import DeviceCache
from kvstore.tiers.device.copying import BlockCopier, DirectCopier, LayerSpan, StagedCopier


def layout(dtype: str = "float32") -> KVLayout:
    return KVLayout(num_layers=3, num_kv_heads=2, head_dim=4, block_size_tokens=5, dtype=dtype)


def fill(tensor: torch.Tensor) -> None:
    tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_exported_bytes_are_the_block_in_layout_order(dtype: str) -> None:
    cache = DeviceCache(layout(dtype), 4, "cpu")
    fill(cache.tensor)
    arena = bytearray(b"\xee" * (3 * cache.layout.block_bytes))
    buffers = [
        memoryview(arena)[i * cache.layout.block_bytes :][: cache.layout.block_bytes]
        for i in range(2)
    ]
    cache.export_blocks([3, 1], buffers)
    for block, buffer in zip([3, 1], buffers, strict=True):
        exported = torch.frombuffer(buffer, dtype=cache.tensor.dtype).view(layout().shape)
        assert torch.equal(exported, cache.tensor[block])
    assert arena[2 * cache.layout.block_bytes :] == b"\xee" * cache.layout.block_bytes


def test_imported_blocks_are_seen_by_every_layer_and_touch_no_other() -> None:
    cache = DeviceCache(layout(), 4, "cpu")
    fill(cache.tensor)
    before = cache.tensor.clone()
    source = torch.arange(cache.layout.block_bytes // 4, dtype=torch.float32)
    longer = bytes(source.numpy()) + b"tail that is not the block's"
    cache.import_blocks([2], [memoryview(longer)])
    expected = source.view(layout().shape)
    for layer in range(3):
        assert torch.equal(cache.layer(layer)[2], expected[layer])
    others = [0, 1, 3]
    assert torch.equal(cache.tensor[others], before[others])


def make_copier(tensor: torch.Tensor, staged_blocks: int | None) -> BlockCopier:
    """The path of a GPU, on a CPU, with a staging memory of so many blocks; None = no staging."""
    if staged_blocks is None:
        return DirectCopier(tensor)
    return StagedCopier(tensor, torch.empty(staged_blocks, *layout().shape))


@pytest.mark.parametrize("staged_blocks", [None, 2, 3, 5, 20])
def test_copiers_agree(staged_blocks: int | None) -> None:
    """Staging smaller than the batch, larger, and none at all."""
    tensor = torch.empty(6, *layout().shape)
    fill(tensor)
    copier, everything = make_copier(tensor, staged_blocks), LayerSpan(0, 3)
    ids = [4, 0, 5]
    buffers = [memoryview(bytearray(layout().block_bytes)) for _ in ids]
    copier.export_layers(ids, everything, buffers)
    assert [bytes(b) for b in buffers] == [bytes(tensor[i].numpy().data) for i in ids]
    before = tensor.clone()
    copier.import_layers([1, 2, 3], everything, buffers)
    assert torch.equal(tensor[[1, 2, 3]], before[ids])
    assert torch.equal(tensor[ids], before[ids])


@pytest.mark.parametrize("span", [(0, 1), (1, 2), (1, 3), (0, 3)])
@pytest.mark.parametrize("staged_blocks", [None, 2, 3, 20])
def test_layers_go_to_their_places_and_touch_no_others(
    staged_blocks: int | None, span: tuple[int, int]
) -> None:
    tensor, layers = torch.empty(6, *layout().shape), LayerSpan(*span)
    fill(tensor)
    before, copier = tensor.clone(), make_copier(tensor, staged_blocks)
    ids, size = [4, 0, 5, 2], layout().block_bytes
    buffers = [memoryview(bytearray(b"\xee" * (size + 8))) for _ in ids]
    copier.export_layers(ids, layers, buffers)
    first, length = layout().layer_range(*span)
    for block, buffer in zip(ids, buffers, strict=True):
        whole = bytes(tensor[block].numpy().data)
        assert bytes(buffer[first : first + length]) == whole[first : first + length]
        assert bytes(buffer[:first]) == b"\xee" * first
        assert set(bytes(buffer[first + length :])) == {0xEE}
    copier.import_layers([1, 3], layers, buffers[:2])
    part = slice(*span)
    assert torch.equal(tensor[[1, 3], part], before[[4, 0], part])
    tensor[[1, 3], part] = before[[1, 3], part]
    assert torch.equal(tensor, before)


def test_too_little_memory_names_the_setting_and_the_bytes() -> None:
    num_blocks = 1 << 50
    expected = f"device_blocks={num_blocks} needs {num_blocks * layout().block_bytes} bytes"
    with pytest.raises(ResourceExhaustedError, match=expected):
        DeviceCache(layout(), num_blocks, "cpu")


def test_short_buffers_and_unknown_blocks_are_programmer_errors() -> None:
    cache = DeviceCache(layout(), 2, "cpu")
    whole = memoryview(bytearray(layout().block_bytes))
    with pytest.raises(AssertionError):
        cache.export_blocks([0], [whole[:-1]])
    with pytest.raises(AssertionError):
        cache.import_blocks([2], [whole])
    with pytest.raises(AssertionError):
        cache.import_blocks([0, 1], [whole])
    for layers in (LayerSpan(1, 1), LayerSpan(0, 4), LayerSpan(-1, 2)):
        with pytest.raises(AssertionError):
            cache.export_layers([0], layers, [whole])


def test_repr_tells_size_and_place() -> None:
    assert repr(DeviceCache(layout(), 2, "cpu")) == "DeviceCache(2 blocks, 1920 bytes, cpu)"

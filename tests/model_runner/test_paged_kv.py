from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kvstore.core.layout import KVLayout
from kvstore.tiers.device.cache import DeviceCache
from model_runner import step_groups
from model_runner.config import WorkerConfig
from model_runner.kv_groups import BlockTable
from model_runner.paged_kv import PagedKV, block_rows, token_slots
from model_runner.runner import ModelRunner
from model_runner.step import ForwardChunk, Step

LAYOUT = KVLayout(
    num_layers=3, num_kv_heads=2, head_dim=4, block_size_tokens=4, dtype="float32"
)  # fmt: skip
CPU = torch.device("cpu")
ALL = 1 << 30


@pytest.fixture
def cache() -> DeviceCache:
    cache = DeviceCache(LAYOUT, 6, CPU)
    cache.tensor.copy_(torch.arange(cache.tensor.numel()).view_as(cache.tensor))
    return cache


@pytest.mark.parametrize("layer", range(3))
def test_reads_are_the_blocks_of_the_layer_in_the_order_of_the_tables(
    cache: DeviceCache, layer: int
) -> None:
    tables = torch.tensor([[5, 0, 2], [1, 1, 4]])
    both = PagedKV(cache).read(layer, block_rows(LAYOUT, tables))
    for number, table in enumerate(tables):
        for which in (0, 1):
            expected = torch.cat([cache.layer(layer)[block, which] for block in table], dim=1)
            assert torch.equal(both[which, number], expected)


@pytest.mark.parametrize("layer", range(3))
def test_writes_change_the_tokens_slots_and_nothing_else(cache: DeviceCache, layer: int) -> None:
    blocks, offsets = torch.tensor([5, 0, 2]), torch.tensor([3, 0, 1])
    keys, values = torch.randn(3, 2, 4), torch.randn(3, 2, 4)
    expected = cache.tensor.clone()
    for token, (block, offset) in enumerate(zip(blocks, offsets, strict=True)):
        expected[block, layer, 0, :, offset] = keys[token]
        expected[block, layer, 1, :, offset] = values[token]
    PagedKV(cache).write(layer, token_slots(LAYOUT, blocks, offsets), keys, values)
    assert torch.equal(cache.tensor, expected)


def test_the_buffer_is_kept_and_grows_with_the_largest_read(cache: DeviceCache) -> None:
    kv = PagedKV(cache)
    small, large = torch.tensor([[3]]), torch.tensor([[3, 1, 2], [0, 4, 5]])
    first = kv.read(0, block_rows(LAYOUT, large))
    again = kv.read(1, block_rows(LAYOUT, small))
    assert again.data_ptr() == first.data_ptr()
    assert torch.equal(again[0, 0], cache.layer(1)[3, 0])
    assert kv.read(2, block_rows(LAYOUT, large)).data_ptr() == first.data_ptr()


def chunk(num_tokens: int, end: int, first_block: int = 0) -> ForwardChunk:
    blocks = list(range(first_block, first_block + -(-end // 4)))
    return ForwardChunk(list(range(1, num_tokens + 1)), end - num_tokens, [BlockTable(blocks)])


def test_the_row_is_in_the_order_of_the_groups_and_logits_in_that_of_the_chunks() -> None:
    chunks = [chunk(1, 9), chunk(3, 3), chunk(1, 2), chunk(2, 6), chunk(1, 12)]
    made = Step(chunks, LAYOUT, CPU)
    groups = made.groups(None)
    assert [g.tokens for g in groups] == [slice(0, 3), slice(3, 5), slice(5, 6), slice(6, 8)]
    last_positions = made.positions[made.logit_tokens]
    assert last_positions.tolist() == [one.end - 1 for one in chunks]


def test_only_what_hides_something_has_a_mask() -> None:
    equal = Step([chunk(1, 9), chunk(1, 9, 3)], LAYOUT, CPU).groups(None)
    padded = Step([chunk(1, 9), chunk(1, 10, 3)], LAYOUT, CPU).groups(None)
    assert [(g.mask, g.is_causal) for g in equal] == [(None, False)]
    assert padded[0].mask is not None
    assert padded[0].mask[:, 0, 0].isfinite().sum(-1).tolist() == [9, 10]
    prompt, rest = Step([chunk(3, 3), chunk(3, 7, 3)], LAYOUT, CPU).groups(None)
    assert prompt.is_causal
    assert rest.mask is not None
    assert rest.mask[0, 0].isfinite().sum(-1).tolist() == [5, 6, 7]


@pytest.mark.parametrize(("window", "masked"), [(9, False), (8, True), (5, False), (4, True)])
def test_a_window_hides_what_its_first_block_has_before_it(window: int, masked: bool) -> None:
    """Of the last of 9 tokens, the key at position 9 - `window` is the first that is seen."""
    (group,) = Step([chunk(1, 9)], LAYOUT, CPU).groups(window)
    seen = group.num_keys if group.mask is None else int(group.mask.isfinite().sum())
    assert seen == window
    assert (group.mask is not None) == masked


def test_decodes_are_gathered_in_parts_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = [chunk(1, end, 4 * n) for n, end in enumerate((9, 15, 10, 12, 13))]
    monkeypatch.setattr(step_groups, "gather_bytes_max", lambda device: 2 * 4 * LAYOUT.layer_bytes)
    groups = Step(chunks, LAYOUT, CPU).groups(None)
    assert [g.num_sequences for g in groups] == [2, 2, 1]
    monkeypatch.setattr(step_groups, "gather_bytes_max", lambda device: 1)
    groups = Step(chunks, LAYOUT, CPU).groups(None)
    assert [g.num_sequences for g in groups] == [1] * 5
    assert [g.num_keys for g in groups] == [9, 15, 10, 12, 13]


def test_logits_do_not_depend_on_the_size_of_a_part(
    small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = ModelRunner(WorkerConfig(model=str(small_checkpoint), device_blocks=16))
    prompts = [[(7 * i + n) % 200 + 5 for i in range(n)] for n in (40, 33, 50, 62)]
    tables = [[BlockTable(list(range(4 * n, 4 * n + 4)))] for n in range(4)]
    runner.forward([ForwardChunk(p, 0, t) for p, t in zip(prompts, tables, strict=True)])
    decodes = [ForwardChunk([9], len(p), t) for p, t in zip(prompts, tables, strict=True)]
    logits = []
    for most in (1, 9 * runner.layout.layer_bytes, ALL):
        monkeypatch.setattr(step_groups, "gather_bytes_max", lambda device, most=most: most)
        logits.append(runner.forward(decodes))
    for one in logits[1:]:
        torch.testing.assert_close(one, logits[0], atol=1e-4, rtol=0)

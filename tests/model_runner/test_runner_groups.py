"""Which layers keep their KV alike, for each family, and how much memory they get."""

from __future__ import annotations

from pathlib import Path

import pytest

from model_runner.config import WorkerConfig
from model_runner.families_testing import FAMILIES, family_checkpoint
from model_runner.kv_groups import KVGroup
from model_runner.runner import ModelRunner, cache_sizes
from model_runner.testing import window_group

BLOCK = 4
WINDOWS = {
    "mistral-sliding": [((0, 1, 2), 9)],
    "qwen2-some-layers-sliding": [((0,), None), ((1, 2), 8)],
    "gemma2-softcap-sliding": [((1,), None), ((0, 2), 8)],
    "gemma3-sliding": [((1,), None), ((0, 2), 8)],
    "cohere2-sliding": [((1,), None), ((0, 2), 8)],
    "gpt-oss-sinks-moe": [((1,), None), ((0, 2), 8)],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_groups_of_a_family(family: str, tmp_path: Path) -> None:
    folder = family_checkpoint(family, tmp_path)
    runner = ModelRunner(
        WorkerConfig(model=str(folder), block_size_tokens=BLOCK, device_blocks=9, threads=1)
    )
    found = [(group.layers, group.window_tokens) for group in runner.groups]
    assert found == WINDOWS.get(family, [((0, 1, 2), None)])
    assert runner.layout.num_layers == 3
    assert runner.layout.layers is None
    assert runner.identity.layout == runner.layout
    assert sum(group.layout.block_bytes for group in runner.groups) == runner.layout.block_bytes
    for group, cache in zip(runner.groups, runner.caches, strict=True):
        assert group.layout.num_layers == len(group.layers)
        assert cache.layout == group.layout
        alone = len(runner.groups) == 1
        assert group.layout.layers == (None if alone else group.layers)
    fingerprints = {group.layout.fingerprint for group in runner.groups} | {
        runner.layout.fingerprint
    }
    assert len(fingerprints) == (1 if len(runner.groups) == 1 else 1 + len(runner.groups))


def sizes(groups: list[KVGroup], **settings: int) -> list[int]:
    config = {"model": "none", "block_size_tokens": BLOCK, "device_blocks": 1_000}
    return cache_sizes(groups, WorkerConfig.model_validate(config | settings))


def test_a_window_takes_no_more_memory_than_it_needs() -> None:
    full, window = window_group(None, BLOCK), window_group(9, BLOCK)
    limits = {"max_running": 10, "max_batch_tokens": 64}
    # Each request: two blocks in sight before its hits end, two after, and two partly filled.
    assert sizes([full, window], **limits) == [1_000, 2 * (10 * 6 + 16)]
    assert sizes([full, window], **limits, device_blocks=50) == [50, 50]
    assert sizes([window], **limits) == [1_000]

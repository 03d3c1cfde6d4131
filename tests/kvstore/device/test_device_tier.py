"""The device tier is a tier like the others: it runs their suite, directly and through staging."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from kvstore.core.checksum import checksum
from kvstore.core.ids import BlockKey
from kvstore.core.layout import KVLayout
from kvstore.testing import tier_conformance
from kvstore.testing.tier_conformance import TierConformance, load_one
from kvstore.tiers.base import Block, Tier
from kvstore.tiers.device.cache import DeviceCache
from kvstore.tiers.device.copying import StagedCopier
from kvstore.tiers.device.tier import DeviceTier

LAYOUT = KVLayout(num_layers=3, num_kv_heads=2, head_dim=8, block_size_tokens=100, dtype="bfloat16")
NUM_BLOCKS = 24


class TestDeviceTier(TierConformance):
    block_bytes = LAYOUT.block_bytes
    capacity_bytes = NUM_BLOCKS * LAYOUT.block_bytes
    lengths_bytes = (LAYOUT.block_bytes,) * 6
    device = "cpu"

    @pytest.fixture(autouse=True)
    def _keys_of_this_layout(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tier_conformance, "LAYOUT", LAYOUT.fingerprint)

    def make_cache(self) -> DeviceCache:
        return DeviceCache(LAYOUT, NUM_BLOCKS, self.device)

    def make_tier(self) -> Tier:
        self.cache = self.make_cache()
        return DeviceTier(self.cache)

    def damage(self, tier: Tier, key: BlockKey) -> None:
        assert isinstance(tier, DeviceTier)
        (block,) = tier._pool.match([key.hash])
        self.cache.tensor[block].view(torch.uint8).flatten()[17] ^= 1
        tier._pool.release([block])

    def test_other_layouts_and_lengths_stay_out(self) -> None:
        (block,) = self.blocks(1)
        tier = self.make_tier()
        short = Block(block.key, block.data[:-1], checksum(block.data[:-1]))
        foreign = Block(block.key._replace(layout=b"another layout.."), block.data, block.checksum)
        assert list(tier.store([short, foreign]).stored) == []
        assert list(tier.store([block]).stored) == [block.key]
        assert foreign.key not in tier
        assert load_one(tier, foreign)[0] is not None
        tier.close()


class TestStagedDeviceTier(TestDeviceTier):
    """The path of a GPU, on a CPU."""

    def make_cache(self) -> DeviceCache:
        cache = super().make_cache()
        cache._copier = StagedCopier(
            cache.tensor, torch.empty(5, *LAYOUT.shape, dtype=torch.bfloat16)
        )
        return cache


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestCudaDeviceTier(TestDeviceTier):
    device = "cuda"

    @pytest.fixture(autouse=True)
    def _give_memory_back(self) -> Iterator[None]:
        yield
        torch.cuda.empty_cache()

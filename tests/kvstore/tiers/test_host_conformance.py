from pathlib import Path

import pytest

from kvstore.core.ids import BlockKey
from kvstore.eviction.lru import LRU
from kvstore.testing.tier_conformance import TierConformance
from kvstore.tiers.base import Tier
from kvstore.tiers.host.arena import Arena
from kvstore.tiers.host.tier import HostTier


class TestHostTier(TierConformance):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path

    def make_tier(self) -> Tier:
        return HostTier(Arena(self.folder, self.capacity_bytes), LRU(), slab_bytes=128 << 10)

    def damage(self, tier: Tier, key: BlockKey) -> None:
        assert isinstance(tier, HostTier)
        (resident,) = tier.acquire([key])
        assert resident is not None
        tier.view(resident.slot)[1000] ^= 1
        tier.release([key])

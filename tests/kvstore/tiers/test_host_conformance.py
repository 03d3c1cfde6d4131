from pathlib import Path

import pytest

from kvstore.core.ids import BlockKey
from kvstore.eviction.registry import POLICIES
from kvstore.testing.clock import ManualClock
from kvstore.testing.tier_conformance import TierConformance
from kvstore.tiers.base import Tier
from kvstore.tiers.host.arena import Arena
from kvstore.tiers.host.tier import HostTier


class TestHostTier(TierConformance):
    @pytest.fixture(autouse=True, params=POLICIES)
    def _setting(self, tmp_path: Path, request: pytest.FixtureRequest) -> None:
        self.folder = tmp_path
        self.make_policy = POLICIES[request.param]

    def make_tier(self) -> Tier:
        policy = self.make_policy(ManualClock())
        return HostTier(Arena(self.folder, self.capacity_bytes), policy, slab_bytes=128 << 10)

    def damage(self, tier: Tier, key: BlockKey) -> None:
        assert isinstance(tier, HostTier)
        (resident,) = tier.acquire([key])
        assert resident is not None
        tier.view(resident.slot)[1000] ^= 1
        tier.release([key])

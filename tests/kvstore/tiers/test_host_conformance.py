from pathlib import Path

import pytest

from kvstore.core.ids import BlockKey
from kvstore.eviction.registry import POLICIES
from kvstore.testing.addressable_conformance import AddressableTierConformance
from kvstore.testing.clock import ManualClock
from kvstore.tiers.base import Tier
from kvstore.tiers.host.arena import Arena
from kvstore.tiers.host.tier import HostTier


class TestHostTier(AddressableTierConformance):
    @pytest.fixture(autouse=True, params=POLICIES)
    def _setting(self, tmp_path: Path, request: pytest.FixtureRequest) -> None:
        self.folder = tmp_path
        self.make_policy = POLICIES[request.param]

    def make_addressable(self, clock: ManualClock) -> HostTier:
        arena = Arena(self.folder, self.capacity_bytes)
        return HostTier(arena, self.make_policy(clock), slab_bytes=128 << 10, clock=clock)

    def damage(self, tier: Tier, key: BlockKey) -> None:
        assert isinstance(tier, HostTier)
        (resident,) = tier.acquire([key])
        assert resident is not None
        tier.view(resident.slot)[1000] ^= 1
        tier.release([key])

from pathlib import Path

import pytest

from kvstore.core.ids import BlockKey
from kvstore.testing.tier_conformance import TierConformance
from kvstore.tiers.base import Tier
from kvstore.tiers.disk import tier as disk
from kvstore.tiers.disk.tier import DiskTier


class TestDiskTier(TierConformance):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path / "blocks"

    def make_tier(self) -> Tier:
        return DiskTier(self.folder, self.capacity_bytes)

    def damage(self, tier: Tier, key: BlockKey) -> None:
        """The only block of that hash has its bytes after its header, 4 KiB in."""
        for path in self.folder.glob("segment-*"):
            content = bytearray(path.read_bytes())
            where = content.find(key.layout + key.hash)
            if where >= 0:
                content[where // 4096 * 4096 + 4096 + 1000] ^= 1
                path.write_bytes(content)
                return
        raise AssertionError("no such block on disk")


class TestDiskTierWithoutDirectIO(TestDiskTier):
    @pytest.fixture(autouse=True)
    def _buffered(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(disk, "supports_direct", lambda folder: False)

    def test_says_so(self) -> None:
        tier = self.make_tier()
        assert "buffered" in repr(tier)
        tier.close()

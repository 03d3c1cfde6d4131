"""What every `Directory` must do. Subclass it and give the fixture:

    class TestMine(DirectoryConformance):
        @pytest.fixture
        async def directory(self) -> AsyncIterator[Directory]:
            yield MyDirectory(...)

The directory is empty at the start of each test.
"""

from __future__ import annotations

from kvstore.core.ids import BlockHash, BlockKeys, LayoutFingerprint, MemberId
from kvstore.directory.base import Directory, Replica
from kvstore.tiers.base import TierKind

A, B = MemberId("node-a"), MemberId("node-b")
ON_A, ON_B = Replica(A, TierKind.HOST), Replica(B, TierKind.HOST)


def _keys(*numbers: int, layout: bytes = b"l") -> BlockKeys:
    hashes = [BlockHash(number.to_bytes(32, "little")) for number in numbers]
    return BlockKeys(LayoutFingerprint(16 * layout), hashes)


class DirectoryConformance:
    async def test_knows_nothing_at_first(self, directory: Directory) -> None:
        assert await directory.locate(_keys(1, 2)) == [[], []]
        assert await directory.longest_prefix(_keys(1, 2)) == 0
        assert await directory.locate(_keys()) == []
        assert await directory.longest_prefix(_keys()) == 0

    async def test_locates_all_replicas_fastest_first(self, directory: Directory) -> None:
        await directory.stored(A, TierKind.DISK, _keys(1))
        await directory.stored(B, TierKind.HOST, _keys(1, 2))
        await directory.stored(A, TierKind.HOST, _keys(1))
        (first, second) = await directory.locate(_keys(1, 2))
        assert first == [ON_A, ON_B, Replica(A, TierKind.DISK)]
        assert second == [ON_B]

    async def test_longest_prefix_ends_at_the_first_hole(self, directory: Directory) -> None:
        await directory.stored(A, TierKind.HOST, _keys(1, 2))
        await directory.stored(B, TierKind.DISK, _keys(3, 5))
        assert await directory.longest_prefix(_keys(1, 2, 3, 4, 5)) == 3
        assert await directory.longest_prefix(_keys(4, 1, 2)) == 0

    async def test_removed_takes_one_replica_only(self, directory: Directory) -> None:
        for publisher in (A, B):
            await directory.stored(publisher, TierKind.HOST, _keys(1, 2))
        await directory.removed(A, TierKind.HOST, _keys(1))
        assert await directory.locate(_keys(1, 2)) == [[ON_B], [ON_A, ON_B]]

    async def test_removed_from_another_tier_changes_nothing(self, directory: Directory) -> None:
        await directory.stored(A, TierKind.HOST, _keys(1))
        await directory.removed(A, TierKind.DISK, _keys(1))
        assert await directory.locate(_keys(1)) == [[ON_A]]

    async def test_repeating_changes_nothing(self, directory: Directory) -> None:
        for _ in range(2):
            await directory.stored(A, TierKind.HOST, _keys(1, 1))
        assert await directory.locate(_keys(1)) == [[ON_A]]
        for _ in range(2):
            await directory.removed(A, TierKind.HOST, _keys(1, 1))
        assert await directory.locate(_keys(1)) == [[]]

    async def test_cleared_empties_one_tier_of_one_publisher(self, directory: Directory) -> None:
        await directory.stored(A, TierKind.HOST, _keys(1))
        await directory.stored(A, TierKind.DISK, _keys(1))
        await directory.stored(B, TierKind.HOST, _keys(1))
        await directory.cleared(A, TierKind.HOST)
        await directory.cleared(A, TierKind.DEVICE)
        assert await directory.locate(_keys(1)) == [[ON_B, Replica(A, TierKind.DISK)]]

    async def test_forget_drops_a_publisher_from_everywhere(self, directory: Directory) -> None:
        for tier in (TierKind.DEVICE, TierKind.HOST, TierKind.DISK):
            await directory.stored(A, tier, _keys(1, 2))
        await directory.stored(B, TierKind.HOST, _keys(2))
        await directory.forget(A)
        await directory.forget(A)
        assert await directory.locate(_keys(1, 2)) == [[], [ON_B]]
        await directory.stored(A, TierKind.HOST, _keys(1))
        assert await directory.longest_prefix(_keys(1, 2)) == 2

    async def test_layouts_do_not_mix(self, directory: Directory) -> None:
        await directory.stored(A, TierKind.HOST, _keys(1))
        assert await directory.locate(_keys(1, layout=b"m")) == [[]]
        assert await directory.longest_prefix(_keys(1, layout=b"m")) == 0

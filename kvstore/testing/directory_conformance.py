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


async def _located(directory: Directory, keys: BlockKeys) -> list[list[Replica]]:
    return [list(replicas) for replicas in await directory.locate(keys)]


class DirectoryConformance:
    async def test_knows_nothing_at_first(self, directory: Directory) -> None:
        assert await _located(directory, _keys(1, 2)) == [[], []]
        assert await directory.longest_prefix(_keys(1, 2)) == 0
        assert await _located(directory, _keys()) == []
        assert await directory.longest_prefix(_keys()) == 0

    async def test_locates_all_replicas_fastest_first(self, directory: Directory) -> None:
        await directory.stored(A, TierKind.DISK, _keys(1))
        await directory.stored(B, TierKind.HOST, _keys(1, 2))
        await directory.stored(A, TierKind.HOST, _keys(1))
        (first, second) = await _located(directory, _keys(1, 2))
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
        assert await _located(directory, _keys(1, 2)) == [[ON_B], [ON_A, ON_B]]

    async def test_removed_from_another_tier_changes_nothing(self, directory: Directory) -> None:
        await directory.stored(A, TierKind.HOST, _keys(1))
        await directory.removed(A, TierKind.DISK, _keys(1))
        assert await _located(directory, _keys(1)) == [[ON_A]]

    async def test_repeating_changes_nothing(self, directory: Directory) -> None:
        for _ in range(2):
            await directory.stored(A, TierKind.HOST, _keys(1, 1))
        assert await _located(directory, _keys(1)) == [[ON_A]]
        for _ in range(2):
            await directory.removed(A, TierKind.HOST, _keys(1, 1))
        assert await _located(directory, _keys(1)) == [[]]

    async def test_cleared_empties_one_tier_of_one_publisher(self, directory: Directory) -> None:
        await directory.stored(A, TierKind.HOST, _keys(1))
        await directory.stored(A, TierKind.DISK, _keys(1))
        await directory.stored(B, TierKind.HOST, _keys(1))
        await directory.cleared(A, TierKind.HOST)
        await directory.cleared(A, TierKind.DEVICE)
        assert await _located(directory, _keys(1)) == [[ON_B, Replica(A, TierKind.DISK)]]

    async def test_forget_drops_a_publisher_from_everywhere(self, directory: Directory) -> None:
        for tier in (TierKind.DEVICE, TierKind.HOST, TierKind.DISK):
            await directory.stored(A, tier, _keys(1, 2))
        await directory.stored(B, TierKind.HOST, _keys(2))
        await directory.forget(A)
        await directory.forget(A)
        assert await _located(directory, _keys(1, 2)) == [[], [ON_B]]
        await directory.stored(A, TierKind.HOST, _keys(1))
        assert await directory.longest_prefix(_keys(1, 2)) == 2

    async def test_layouts_do_not_mix(self, directory: Directory) -> None:
        await directory.stored(A, TierKind.HOST, _keys(1))
        assert await _located(directory, _keys(1, layout=b"m")) == [[]]
        assert await directory.longest_prefix(_keys(1, layout=b"m")) == 0

    async def test_large_batches_are_one_call(self, directory: Directory) -> None:
        many = _keys(*range(5000))
        await directory.stored(A, TierKind.HOST, many)
        await directory.stored(B, TierKind.DISK, many[1000:])
        await directory.removed(A, TierKind.HOST, many[:4000:2])
        assert await directory.longest_prefix(many) == 0
        assert await directory.longest_prefix(many[1:]) == 1
        assert await directory.longest_prefix(many[1000:]) == 4000
        on_b = [Replica(B, TierKind.DISK)]
        assert await _located(directory, many[998:1002]) == [[], [ON_A], on_b, [ON_A, *on_b]]
        await directory.forget(B)
        assert await _located(directory, many[4000:]) == 1000 * [[ON_A]]

    async def test_answers_stay_as_they_are(self, directory: Directory) -> None:
        """What was located is the caller's: later changes do not reach into it."""
        await directory.stored(A, TierKind.HOST, _keys(1))
        (before,) = await directory.locate(_keys(1))
        await directory.stored(B, TierKind.HOST, _keys(1))
        await directory.removed(A, TierKind.HOST, _keys(1))
        assert list(before) == [ON_A]

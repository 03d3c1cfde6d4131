"""The directory in Redis, shared by all nodes."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from kvstore.core.ids import BlockKeys, LayoutFingerprint, MemberId, pack_hashes
from kvstore.directory import redis_scripts as scripts
from kvstore.directory.base import Replica
from kvstore.directory.redis_changes import CHUNK_BYTES, Change, Verb, clearing, of_keys, split
from kvstore.directory.redis_connection import Call, RedisConnection
from kvstore.directory.redis_holders import Holders, field_of
from kvstore.tiers.base import TierKind

_CHUNKS_PER_PIPELINE = 16
_SWEEP_LOCK_MS = 10_000
_SWEEP_PAUSE_S = 0.002
"""Between two steps, so that readers come first."""

_TIERS = (TierKind.DEVICE, TierKind.HOST, TierKind.DISK)


@dataclass(frozen=True, slots=True)
class Fence:
    """The right to write about a node, as `redis_members` got it by registering."""

    node_id: str
    token: str


_NO_FENCE = Fence("", "")


class RedisDirectory:
    """Implements `Directory`. Cost: one round trip for each 16,384 keys of a verb; `cleared` and
    `forget` cost the same whatever was held. About 50 bytes of Redis memory a replica.

    Knows nothing of who is alive: `forget` says so. Owned by one event loop; it shares
    `connection`, whose owner closes it.
    """

    def __init__(
        self, connection: RedisConnection, *, namespace: str = "kvstore", deadline_s: float = 2.0
    ) -> None:
        """`deadline_s` is the wait for each round trip."""
        self._connection = connection
        self._prefix = f"{namespace}:"
        self._deadline_s = deadline_s
        self._holders = Holders(b"", [])

    async def stored(self, publisher: MemberId, tier: TierKind, keys: BlockKeys) -> None:
        await self.apply(publisher, [of_keys(Verb.STORED, tier, keys)])

    async def removed(self, publisher: MemberId, tier: TierKind, keys: BlockKeys) -> None:
        await self.apply(publisher, [of_keys(Verb.REMOVED, tier, keys)])

    async def cleared(self, publisher: MemberId, tier: TierKind) -> None:
        await self.apply(publisher, [clearing(tier)])

    async def forget(self, publisher: MemberId) -> None:
        await self.apply(publisher, [clearing(tier) for tier in _TIERS])

    async def apply(
        self, publisher: MemberId, changes: Iterable[Change], fence: Fence = _NO_FENCE
    ) -> bool:
        """Make `changes`, in order. False: `fence` does not hold any more, and from some change on
        nothing was done."""
        pending = split(changes)
        while part := list(islice(pending, _CHUNKS_PER_PIPELINE)):
            calls = [self._change(publisher, change, fence) for change in part]
            answers = await self._connection.pipeline(calls, deadline_s=self._deadline_s)
            if -1 in answers:
                return False
        return True

    async def locate(self, keys: BlockKeys) -> list[Sequence[Replica]]:
        packed = pack_hashes(keys.hashes)
        chunks = [packed[i : i + CHUNK_BYTES] for i in range(0, len(packed), CHUNK_BYTES)]
        located: list[Sequence[Replica]] = []
        known = self._holders
        for i in range(0, len(chunks), _CHUNKS_PER_PIPELINE):
            part = chunks[i : i + _CHUNKS_PER_PIPELINE]
            calls = [self._locate(known, keys.layout, chunk) for chunk in part]
            for answer in await self._connection.pipeline(calls, deadline_s=self._deadline_s):
                version, table, found = answer
                if version != known.version:
                    known = Holders(version, table)
                located += known.decode(found)
        self._holders = known
        return located

    async def longest_prefix(self, keys: BlockKeys) -> int:
        located = await self.locate(keys)
        return next((i for i, replicas in enumerate(located) if not replicas), len(located))

    async def sweep(self) -> bool:
        """Remove from the buckets what belongs to nobody any more, in steps of some milliseconds
        with pauses. False: somebody else sweeps. Run it in the background when numbers are dead."""
        sweeper = secrets.token_hex(8)
        dead, layouts = await self._connection.pipeline(
            [["SMEMBERS", self._key("dead")], ["SMEMBERS", self._key("layouts")]],
            deadline_s=self._deadline_s,
        )
        for layout in layouts:
            if not await self._sweep_layout(sweeper, layout):
                return False
        ends: list[Call] = [["DEL", self._key("sweeper")]]
        if dead:
            ends.append(["SREM", self._key("dead"), *dead])
        await self._connection.pipeline(ends, deadline_s=self._deadline_s)
        return True

    async def _sweep_layout(self, sweeper: str, layout: bytes) -> bool:
        bucket = 0
        while 0 <= bucket < scripts.NUM_BUCKETS:
            step = self._script(scripts.SWEEP, _NO_FENCE, sweeper, _SWEEP_LOCK_MS, layout, bucket)
            (bucket,) = await self._connection.pipeline([step], deadline_s=self._deadline_s)
            await asyncio.sleep(_SWEEP_PAUSE_S)
        return bucket >= 0

    def _change(self, publisher: MemberId, change: Change, fence: Fence) -> Call:
        field, token = field_of(publisher, change.tier), secrets.token_bytes(8)
        match change.verb:
            case Verb.STORED:
                stored = (field, token, change.layout, change.hashes)
                return self._script(scripts.STORED, fence, *stored)
            case Verb.REMOVED:
                return self._script(scripts.REMOVED, fence, field, change.layout, change.hashes)
            case Verb.CLEARED:
                return self._script(scripts.DROPPED, fence, token, field)

    def _locate(self, known: Holders, layout: LayoutFingerprint, hashes: bytes) -> Call:
        return self._script(scripts.LOCATE, _NO_FENCE, known.version, layout, hashes)

    def _script(self, source: str, fence: Fence, *arguments: bytes | str | int) -> Call:
        """EVAL, not EVALSHA: a Redis that restarted knows no script, and hashing 1 KiB is nothing
        beside the work."""
        return ["EVAL", source, 0, self._prefix, fence.node_id, fence.token, *arguments]

    def _key(self, name: str) -> str:
        return self._prefix + name

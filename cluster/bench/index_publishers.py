"""Members that publish block events, in a process of their own: what a conductor has to recover
the index from.

Run as `python -m cluster.bench.index_publishers`; answers commands, one JSON object a line on
stdin, one on stdout. Ends when stdin does, or when it is killed.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import Sequence
from typing import Any

from kvstore.core.ids import BlockHash, BlockKeys, LayoutFingerprint
from kvstore.events.publisher import EventPublisher
from kvstore.tiers.base import TierKind

LAYOUT = LayoutFingerprint(bytes(16))
BATCH = 64
ANY = "tcp://127.0.0.1:0"


class Holdings:
    """What one member holds, and its publisher."""

    def __init__(self, name: str, seed: int, endpoints: Sequence[str]) -> None:
        self._rng = random.Random(seed)  # noqa: S311
        self._held: dict[BlockHash, None] = {}
        event_endpoint, replay_endpoint = endpoints
        self.publisher = EventPublisher(
            name, time.time_ns(), event_endpoint, replay_endpoint, self._inventory
        )

    def fill(self, blocks: int) -> None:
        """Before anybody listens: only a snapshot can tell."""
        packed = self._rng.randbytes(32 * blocks)
        hashes = [BlockHash(packed[at : at + 32]) for at in range(0, len(packed), 32)]
        self._held.update(dict.fromkeys(hashes))

    def change(self) -> None:
        """A batch comes, and as many blocks go, one here and one there."""
        added = [BlockHash(self._rng.randbytes(32)) for _ in range(BATCH)]
        gone = self._rng.sample(list(self._held), min(BATCH, len(self._held)))
        self._held.update(dict.fromkeys(added))
        for name in gone:
            del self._held[name]
        self.publisher.stored(TierKind.DEVICE, BlockKeys(LAYOUT, added))
        self.publisher.removed(TierKind.DEVICE, BlockKeys(LAYOUT, gone))

    def digest(self) -> list[int]:
        """How many blocks, and the sum of their routing keys."""
        keys = [int.from_bytes(name[:8], "little") for name in self._held]
        return [len(keys), sum(keys) % 2**64]

    def _inventory(self) -> list[tuple[TierKind, BlockKeys]]:
        return [(TierKind.DEVICE, BlockKeys(LAYOUT, list(self._held)))]


class Publishers:
    """Answers commands."""

    def __init__(self) -> None:
        self._members: list[Holdings] = []
        self._changing: asyncio.Task[None] | None = None

    async def start(self, members: int, blocks: int, seed: int, endpoints: list[list[str]]) -> Any:
        """Returns for each member its epoch and its two endpoints. `endpoints`: of an earlier
        start, to be used again."""
        for number in range(members):
            own = endpoints[number] if endpoints else [ANY, ANY]
            member = Holdings(f"worker-{number}", seed + number, own)
            member.fill(blocks)
            await member.publisher.start()
            self._members.append(member)
        publishers = [member.publisher for member in self._members]
        return [[p.epoch, p.event_endpoint, p.replay_endpoint] for p in publishers]

    async def change(self, per_s: float) -> None:
        """Each member so many batches a second, until `quiet`."""
        self._changing = asyncio.create_task(self._change(1 / per_s))

    async def quiet(self) -> Any:
        """The truth from now on."""
        if self._changing is not None:
            self._changing.cancel()
            await asyncio.wait([self._changing])
            self._changing = None
        return [member.digest() for member in self._members]

    async def _change(self, pause_s: float) -> None:
        while True:
            for member in self._members:
                member.change()
                await asyncio.sleep(pause_s / len(self._members))


async def main() -> None:
    publishers = Publishers()
    commands = asyncio.StreamReader(limit=1 << 20)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(commands), sys.stdin
    )
    print("ready", flush=True)  # noqa: T201
    while line := await commands.readline():
        command = json.loads(line)
        result = await getattr(publishers, command.pop("verb"))(**command)
        print(json.dumps({"result": result}), flush=True)  # noqa: T201


if __name__ == "__main__":
    asyncio.run(main())

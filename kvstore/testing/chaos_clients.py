"""What the client processes of a chaos run do until they are killed."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from random import Random

from kvstore.client.aio import Client
from kvstore.core.errors import KVStoreError
from kvstore.core.ids import BlockHash, BlockKeys, LayoutFingerprint

LAYOUT = LayoutFingerprint(b"chaos-layout-016")
BLOCK_BYTES = 48 << 10
NUM_KEYS = 96
"""Their bytes fit the disk tier, and not the host tier: blocks are evicted and brought up again."""
SETTLE_S = 10.0
"""Longest wait for a state that must come; far beyond the lease time, for slow machines."""
WRONG_BYTES = 3
"""Exit status of a process that read what it must never read."""


def content(block_hash: BlockHash) -> bytes:
    """The one content that a key may have."""
    return (block_hash * (BLOCK_BYTES // len(block_hash) + 1))[:BLOCK_BYTES]


def contents(keys: BlockKeys) -> list[memoryview]:
    return [memoryview(content(block_hash)) for block_hash in keys.hashes]


def all_keys() -> BlockKeys:
    return BlockKeys(
        LAYOUT,
        [BlockHash(hashlib.sha256(i.to_bytes(4, "little")).digest()) for i in range(NUM_KEYS)],
    )


def some_keys(rng: Random) -> BlockKeys:
    first = rng.randrange(NUM_KEYS)
    return all_keys()[first : first + rng.randint(1, 8)]


async def connect(endpoint: str) -> Client:
    """Tries again for as long as a node may take to come up."""
    deadline_s = time.monotonic() + SETTLE_S
    while True:
        try:
            return await Client.connect(endpoint, client_name="chaos", deadline_s=1.0)
        except KVStoreError:
            if time.monotonic() > deadline_s:
                raise


def put_forever(endpoint: str, seed: int) -> None:
    """A client process: puts random runs of blocks."""
    asyncio.run(_forever(endpoint, Random(seed), _put))  # noqa: S311


def write_slowly_forever(endpoint: str, seed: int) -> None:
    """A client process: is in the middle of writing random runs of blocks most of the time."""
    asyncio.run(_forever(endpoint, Random(seed), _write_slowly))  # noqa: S311


def read_forever(endpoint: str, seed: int) -> None:
    """A client process: gets random runs of blocks, and exits if one is wrong."""
    asyncio.run(_forever(endpoint, Random(seed), _read))  # noqa: S311


async def _forever(
    endpoint: str, rng: Random, work: Callable[[Client, Random], Awaitable[None]]
) -> None:
    client = await connect(endpoint)
    while True:
        with suppress(KVStoreError):  # the node may be the one that was killed
            await work(client, rng)


async def _put(client: Client, rng: Random) -> None:
    keys = some_keys(rng)
    await client.put(keys, contents(keys), deadline_s=1.0)


async def _write_slowly(client: Client, rng: Random) -> None:
    """A pause in the middle of the bytes: who is stopped there writes the rest when it goes on."""
    keys = some_keys(rng)
    half = BLOCK_BYTES // 2
    async with await client.reserve(keys, BLOCK_BYTES) as reservation:
        for block in reservation.blocks:
            block.view[:half] = content(keys.hashes[block.index])[:half]
        await asyncio.sleep(rng.uniform(0, 0.01))
        for block in reservation.blocks:
            block.view[half:] = content(keys.hashes[block.index])[half:]
        await reservation.commit()


async def _read(client: Client, rng: Random) -> None:
    keys = some_keys(rng)
    into = [bytearray(BLOCK_BYTES) for _ in keys.hashes]
    misses = await client.get(keys, [memoryview(b) for b in into], deadline_s=1.0)
    for i, (block_hash, block) in enumerate(zip(keys.hashes, into, strict=True)):
        if i not in misses and block != content(block_hash):
            os._exit(WRONG_BYTES)

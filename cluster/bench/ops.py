"""`kvstore bench ops`: what the books of a node cost, in time and in memory."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from math import inf
from pathlib import Path
from shutil import disk_usage, rmtree

import numpy as np
import numpy.typing as npt

from cluster.bench.alternate import seconds_of
from cluster.bench.case import BenchOptions, Case
from cluster.bench.spawned_node import spawned_node
from kvstore.client.aio import Client
from kvstore.core.checksum import checksum
from kvstore.core.errors import ConfigurationError, UnavailableError
from kvstore.core.hashing import block_hashes
from kvstore.core.ids import BlockKeys, LayoutFingerprint, unpack_hashes
from kvstore.core.layout import KVLayout
from kvstore.events.null import NullEventSink
from kvstore.eviction.registry import POLICIES
from kvstore.node.config import NodeConfig
from kvstore.node.replicas import Replicas
from kvstore.tiers.base import Block
from kvstore.tiers.disk.tier import DiskTier
from kvstore.tiers.host.arena import Arena
from kvstore.tiers.host.tier import HostTier
from kvstore.tiers.memory import aligned_buffer

_PROMPT_TOKENS = 100_000
_ROOT = bytes(32)
_FEW, _MANY = 10_000, 1_000_000
_BATCH = 250
"""Blocks of one chain."""
_PROMPT_BLOCKS = 6_250
_BLOCK_BYTES = 4096
_LAYOUT = LayoutFingerprint(b"bench ops       ")
_ROUNDS = 50
_SPARE_BLOCKS = 50_000
_MILLION_S = 300.0
_PUT_S = 30.0
_DISK_BATCH = 4_096
_RECORD_BYTES = 2 * _BLOCK_BYTES


def ops(options: BenchOptions) -> Iterator[Case]:
    """Matching of long prompts, and 10^6 resident blocks in the host tier and on disk.

    Takes a minute or two, 9 GB of the folder's disk and 5 GB of shared memory. Raises
    ConfigurationError where that is not there.
    """
    yield from _match_cases(options.folder)
    yield from _million_cases()
    yield _reopen_case(options.folder)


def _match_cases(folder: Path) -> Iterator[Case]:
    tokens = np.random.default_rng(0).integers(0, 128_000, _PROMPT_TOKENS)
    with spawned_node(folder, host="256MiB") as endpoint:
        for block_size in (64, 16):
            match_ms = asyncio.run(_match_ms(endpoint, tokens, block_size))
            name = f"match_100k_block{block_size}_ms"
            yield Case(name, match_ms, "ms", note="hashing and round trip; best of 50")


async def _match_ms(endpoint: str, tokens: npt.NDArray[np.int64], block_size: int) -> float:
    layout = KVLayout(1, 1, 4, block_size, "float16")
    async with await Client.connect(endpoint, layouts=[layout]) as client:

        def prompt() -> BlockKeys:
            return BlockKeys(layout.fingerprint, block_hashes(_ROOT, tokens, block_size))

        keys = prompt()
        for start in range(0, len(keys), _BATCH):
            batch = keys[start : start + _BATCH]
            await client.put(batch, [bytes(layout.block_bytes)] * len(batch), deadline_s=_PUT_S)
        best_s = inf
        for _ in range(_ROUNDS):
            started_s = time.perf_counter()
            match = await client.match(prompt())
            best_s = min(best_s, time.perf_counter() - started_s)
            if len(match) != len(keys):
                raise UnavailableError("bench ops: the node lost blocks that it was just given")
    return best_s * 1e3


@dataclass(frozen=True, slots=True)
class _Books:
    """Of a host tier with `_MANY` blocks, each read once."""

    bytes_per_block: float
    slowdown: float


def _million_cases() -> Iterator[Case]:
    """In a process of its own, whose memory is nothing but the books."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        books = pool.submit(_measure_books).result(_MILLION_S)
    yield Case(
        "index_bytes_per_block",
        books.bytes_per_block,
        "bytes",
        note="host tier, default policy: keys, books and the arena's tables; each block read once",
    )
    yield Case(
        "match_slowdown_1m",
        books.slowdown,
        "x",
        note="6,250 keys, 10^6 resident blocks over 10^4, without the network",
    )


def _measure_books() -> _Books:
    arena = Arena(
        NodeConfig.model_fields["arena_folder"].default, (_MANY + _SPARE_BLOCKS) * _BLOCK_BYTES
    )
    policy = POLICIES[NodeConfig.model_fields["eviction"].default](time.monotonic)
    tier = HostTier(arena, policy, high_watermark=1, low_watermark=1)
    replicas = Replicas(tier, None, NullEventSink())
    gc.collect()
    before = _private_bytes()
    prompt = b"".join(_fill(tier) for _ in range(_FEW // _BATCH))[: 32 * _PROMPT_BLOCKS]
    few_s = _best_s(lambda: replicas.prefix_tiers(_keys(prompt)))
    for _ in range((_MANY - _FEW) // _BATCH):
        _fill(tier)
    gc.collect()
    books_bytes = _private_bytes() - before + arena.data_offset
    bytes_per_block = books_bytes / tier.statistics().blocks
    many_s = _best_s(lambda: replicas.prefix_tiers(_keys(prompt)))
    tier.close()
    return _Books(bytes_per_block, many_s / few_s)


def _fill(tier: HostTier) -> bytes:
    """One more chain, committed and then read by another; returns its packed hashes."""
    packed = os.urandom(32 * _BATCH)
    keys = list(_keys(packed))
    tier.reserve(keys, _BLOCK_BYTES)
    checksums = np.frombuffer(packed, "<u4", _BATCH).tolist()
    tier.commit(keys, [_BLOCK_BYTES] * _BATCH, checksums)
    reader = list(_keys(packed))
    tier.acquire(reader)
    tier.release(reader)
    return packed


def _keys(packed: bytes) -> BlockKeys:
    return BlockKeys(_LAYOUT, unpack_hashes(packed))


def _private_bytes() -> int:
    """Memory of this process that it shares with no other: not the arena."""
    status = Path("/proc/self/status").read_text("ascii")
    (anonymous,) = (line for line in status.splitlines() if line.startswith("RssAnon"))
    return int(anonymous.split()[1]) * 1024


def _best_s(work: Callable[[], object]) -> float:
    return min(seconds_of(work) for _ in range(_ROUNDS))


def _reopen_case(folder: Path) -> Case:
    capacity_bytes = _MANY * _RECORD_BYTES * 9 // 8
    free_bytes = disk_usage(folder).free
    if free_bytes < capacity_bytes:
        raise ConfigurationError(
            f"bench ops: {folder} has {free_bytes} bytes free, {capacity_bytes} are needed; "
            "give --folder on another disk"
        )
    tier = DiskTier(folder / "reopen", capacity_bytes)
    try:
        _write(tier)
        tier.close()
        gc.collect()
        started_s = time.perf_counter()
        tier = DiskTier(folder / "reopen", capacity_bytes)
        reopen_s = time.perf_counter() - started_s
        blocks = tier.statistics().blocks
    finally:
        tier.close()
        rmtree(folder / "reopen")
    return Case("reopen_1m_s", reopen_s, "s", note=f"{blocks:,} blocks of 4 KiB found again")


def _write(tier: DiskTier) -> None:
    data = aligned_buffer(_BLOCK_BYTES)
    crc = checksum(data)
    for start in range(0, _MANY, _DISK_BATCH):
        packed = os.urandom(32 * min(_DISK_BATCH, _MANY - start))
        tier.store([Block(key, data, crc) for key in _keys(packed)])

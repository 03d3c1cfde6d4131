"""One node's store without its network: arena, tiers, block manager, housekeeping."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from kvstore.core.errors import ConfigurationError
from kvstore.core.ids import BlockKeys
from kvstore.core.ports import Clock
from kvstore.events.base import EventSink
from kvstore.eviction.registry import POLICIES
from kvstore.node.config import NodeConfig
from kvstore.node.manager import BlockManager
from kvstore.node.service import NodeFacts, NodeService
from kvstore.tiers.base import Tier, TierKind
from kvstore.tiers.disk.tier import DiskTier
from kvstore.tiers.host.arena import Arena
from kvstore.tiers.host.tier import HostTier

_LOG = logging.getLogger(__name__)

TICK_S = 0.1
FLUSH_S = 10.0
"""Longest time that stopping waits for queued blocks to reach the disk."""
DISK_THREADS = 4
"""One batch of writes and three of reads at a time; the disk tier adds its own queue depth."""


class LocalStore:
    """Builds and runs the store of one node on the running event loop.

    Construct (opens files and may read the disk's index: call it off the loop) → `start` → `stop`.
    Raises ConfigurationError at construction, with nothing left behind.
    """

    def __init__(
        self,
        config: NodeConfig,
        sink: EventSink,
        boot_id: int,
        *,
        clock: Clock = time.monotonic,
        last_event_sequence: Callable[[], int] = lambda: 0,
    ) -> None:
        _check(config)
        self._sink = sink
        self._disk = _open_disk(config)
        try:
            self._host = _open_host(config, clock)
        except ConfigurationError:
            if self._disk is not None:
                self._disk.close()
            raise
        self._executor = ThreadPoolExecutor(DISK_THREADS, thread_name_prefix="kvstore-disk")
        ttl_s = config.lease_ttl_ms / 1000
        self.manager = BlockManager(self._host, self._disk, sink, self._executor, clock, ttl_s)
        self.facts = NodeFacts(
            node_id=config.node_id,
            boot_id=boot_id,
            arena_path=str(self._host.arena.path),
            arena_bytes=self._host.arena.file_bytes,
            max_block_bytes=self._host.block_bytes_max,
            lease_ttl_ms=config.lease_ttl_ms,
        )
        self.service = NodeService(self.manager, self.facts, clock, last_event_sequence)
        self._ticker: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Announce what the disk kept from the node's last life, and begin housekeeping."""
        for tier, keys in self.manager.inventory():
            self._sink.stored(tier, keys)
        self._ticker = asyncio.create_task(self._tick_forever())

    async def drain(self) -> None:
        """Refuse new writes, and write queued blocks to disk for a bounded time."""
        await self.manager.stop(FLUSH_S)

    async def stop(self) -> None:
        """Drain, then give everything back. Idempotent."""
        if self._ticker is not None:
            self._ticker.cancel()
            await asyncio.wait([self._ticker])
            self._ticker = None
        await self.drain()
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """Give files, memory and threads back, without waiting for anything but disk work begun."""
        self._executor.shutdown()
        if self._disk is not None:
            self._disk.close()
        self._host.close()

    def inventory(self) -> list[tuple[TierKind, BlockKeys]]:
        return self.manager.inventory()

    async def _tick_forever(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            try:
                self.manager.tick()
            except Exception:  # the boundary of this task: without it nothing would ever expire
                _LOG.exception("housekeeping failed; it goes on")


def _check(config: NodeConfig) -> None:
    if config.low_watermark > config.high_watermark:
        raise ConfigurationError(
            f"low_watermark {config.low_watermark} must not exceed high_watermark "
            f"{config.high_watermark}"
        )
    if config.disk and config.disk_path is None:
        raise ConfigurationError("disk needs disk_path, the folder to keep its blocks in")


def _open_host(config: NodeConfig, clock: Clock) -> HostTier:
    return HostTier(
        Arena(config.arena_folder, config.host),
        POLICIES[config.eviction](clock),
        high_watermark=config.high_watermark,
        low_watermark=config.low_watermark,
    )


def _open_disk(config: NodeConfig) -> Tier | None:
    if not config.disk:
        return None
    assert config.disk_path is not None
    return DiskTier(config.disk_path, config.disk)

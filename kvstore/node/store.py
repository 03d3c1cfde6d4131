"""One node's store without its network: arena, tiers, block manager, housekeeping."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from kvstore.core.errors import ConfigurationError, InvalidArgumentError
from kvstore.core.ids import BlockKeys, NodeId
from kvstore.core.ports import Clock
from kvstore.directory.base import ClusterView
from kvstore.directory.null import NullView
from kvstore.events.base import EventSink
from kvstore.eviction.registry import POLICIES
from kvstore.node.config import NodeConfig
from kvstore.node.host_id import this_host
from kvstore.node.manager import BlockManager
from kvstore.node.pull.peer import PullerIdentity
from kvstore.node.pull.replication import ReplicationConfig
from kvstore.node.service import NodeFacts, NodeService
from kvstore.node.tenants import ANY_TENANT, check_tenant
from kvstore.tiers.base import TierKind
from kvstore.tiers.disk.threads import DiskThreads
from kvstore.tiers.disk.tier import DiskTier
from kvstore.tiers.host.arena import Arena
from kvstore.tiers.host.tier import HostTier
from kvstore.transports.security.keys import load_client_keys

_LOG = logging.getLogger(__name__)

TICK_S = 0.1
FLUSH_S = 10.0
"""Longest time that stopping waits for queued blocks to reach the disk."""
CLOSE_S = 5.0
"""Longest time that closing waits for the disk."""
DISK_THREADS = 4
"""One batch of writes and three of reads at a time; the disk tier adds its own queue depth."""


class LocalStore:
    """Builds and runs the store of one node on the running event loop.

    `view` knows the other nodes, and its owner starts and stops it; without one there are none.

    Construct (opens files and may read the disk's index: call it off the loop) → `start` → `stop`.
    Raises ConfigurationError at construction, with nothing left behind.
    """

    def __init__(
        self,
        config: NodeConfig,
        sink: EventSink,
        boot_id: int,
        *,
        view: ClusterView | None = None,
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
        self._executor = DiskThreads(DISK_THREADS, "kvstore-disk")
        self.manager = BlockManager(
            self._host,
            self._disk,
            sink,
            self._executor,
            clock,
            config,
            _replication(config, view or NullView()),
        )
        if self._disk is not None:
            self.manager.learn_layout = self._disk.learn_layout
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
        self._closed = False

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
        """Give files, memory and threads back. Idempotent.

        Waits for the disk for at most CLOSE_S: one that hangs longer keeps its threads, its files
        and the memory they read into until it answers, or the process ends.
        """
        if self._closed:
            return
        self._closed = True
        if self._disk is not None:
            self._close_disk(self._disk)
        else:
            self._executor.shutdown()
        self._host.close()

    def _close_disk(self, disk: DiskTier) -> None:
        """If it does not answer, the last of its threads will close it when it does."""
        closing = self._executor.submit(disk.close)
        self._executor.shutdown(wait=False)
        if self._executor.join(CLOSE_S):
            closing.result()
            return
        _LOG.error(
            "the disk at %s hangs: left behind with what it has not answered for %g s; blocks that "
            "were not written are lost to it, and its folder is in use until this process ends",
            disk.folder,
            CLOSE_S,
        )

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
    for tenant, quota_bytes in config.quotas.items():
        try:
            check_tenant("quotas", "" if tenant == ANY_TENANT else tenant)
        except InvalidArgumentError as error:
            raise ConfigurationError(f"{error}; `{ANY_TENANT}` = all others") from error
        if quota_bytes <= 0:
            raise ConfigurationError(
                f"quotas: {tenant!r} must have at least one byte; leave it out for no bound"
            )
    if config.disk and config.disk_path is None:
        raise ConfigurationError("disk needs disk_path, the folder to keep its blocks in")


def _replication(config: NodeConfig, view: ClusterView) -> ReplicationConfig:
    return ReplicationConfig(
        view=view,
        own=PullerIdentity(
            NodeId(config.node_id),
            this_host(),
            load_client_keys(config.credentials, "node.credentials"),
        ),
        replica_share=config.replica_share,
        hedge_s=config.hedge_ms / 1000,
    )


def _open_host(config: NodeConfig, clock: Clock) -> HostTier:
    return HostTier(
        Arena(config.arena_folder, config.host),
        POLICIES[config.eviction](clock),
        high_watermark=config.high_watermark,
        low_watermark=config.low_watermark,
        clock=clock,
    )


def _open_disk(config: NodeConfig) -> DiskTier | None:
    if not config.disk:
        return None
    assert config.disk_path is not None
    if config.disk_codec != "raw":
        _LOG.warning(
            "disk_codec is %s: blocks that come back from disk are not exactly those that were "
            "stored, and text generated from them may differ",
            config.disk_codec,
        )
    return DiskTier(config.disk_path, config.disk, codec=config.disk_codec)

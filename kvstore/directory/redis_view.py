"""What a node knows of the others by a directory in Redis."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from kvstore.core.errors import KVStoreError
from kvstore.core.ids import BlockKeys, MemberId, NodeId
from kvstore.directory.base import NodeRecord, Replica
from kvstore.directory.redis_connection import RedisConnection
from kvstore.directory.redis_directory import RedisDirectory
from kvstore.directory.redis_members import RedisMembers
from kvstore.directory.redis_reporter import RedisReporter
from kvstore.events.base import EventSink, Inventory
from kvstore.events.publisher import HEARTBEAT_S

_LOG = logging.getLogger(__name__)

_HOLD_S = 0.05
"""After a failure, no call is tried for at least this long."""
_PAUSE_S_MAX = 5.0
_FAILURES_TO_TELL = 3
_COALESCE_S = 0.005
"""Longest time that an event waits for others to share its round trip."""


@dataclass(frozen=True, slots=True)
class RedisViewStatistics:
    reachable: bool
    registered: bool
    rebuilds: int
    """How often the whole inventory was told; 1 after a start in peace."""
    overflows: int


class RedisView:
    """Implements `ClusterView` on a Redis that all nodes share.

    Three tasks: one says every `HEARTBEAT_S` that the node lives and hears who else does; one
    passes the node's own events on; one removes what dead nodes left, when there is some. A failure
    of Redis holds calls back until a heartbeat comes through again: `locate` then finds nothing, at
    once.
    """

    def __init__(self, url: str, *, namespace: str = "kvstore") -> None:
        """Raises ConfigurationError for a URL that cannot be one. `namespace` is what all keys
        begin with."""
        self._connection = RedisConnection(url)
        self._namespace = namespace
        self._directory = RedisDirectory(self._connection, namespace=namespace)
        self._reporter = RedisReporter(self._directory)
        self._nodes: Mapping[NodeId, NodeRecord] = {}
        self._reachable = asyncio.Event()
        self._beat_now = asyncio.Event()
        self._reported_away = False
        self._tasks: list[asyncio.Task[None]] = []
        self._sweep: asyncio.Task[None] | None = None

    @property
    def sink(self) -> EventSink:
        return self._reporter

    def statistics(self) -> RedisViewStatistics:
        return RedisViewStatistics(
            self._reachable.is_set(),
            self._reporter.registration is not None,
            self._reporter.rebuilds,
            self._reporter.overflows,
        )

    async def start(self, own: NodeRecord, inventory: Inventory) -> None:
        assert not self._tasks, "started twice"
        self._members = RedisMembers(self._connection, self._namespace, own)
        self._reporter.begin(self._members, MemberId(own.node_id), inventory)
        self._tasks = [
            asyncio.create_task(self._beat_for_ever()),
            asyncio.create_task(self._report_for_ever()),
        ]

    async def stop(self) -> None:
        self._reporter.end()
        tasks = self._tasks + ([self._sweep] if self._sweep else [])
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._tasks, self._sweep = [], None
        registration = self._reporter.registration
        if registration is not None and self._reachable.is_set():
            with suppress(KVStoreError):  # its record expires
                await self._members.withdraw(registration)
        self._reachable.clear()
        self._nodes = {}
        await self._connection.close()

    def nodes(self) -> Mapping[NodeId, NodeRecord]:
        """While Redis is away: those of before."""
        return self._nodes

    async def locate(self, keys: BlockKeys, *, deadline_s: float) -> list[Sequence[Replica]]:
        if not self._reachable.is_set():
            return [()] * len(keys)
        try:
            async with asyncio.timeout(deadline_s):
                located = await self._directory.locate(keys)
        except (KVStoreError, TimeoutError) as error:
            _LOG.debug("%s: nothing located: %s", self._connection.name, error)
            self._hold_back()
            return [()] * len(keys)
        return _on(self._nodes, located)

    async def _beat_for_ever(self) -> None:
        while True:
            try:
                await self._beat()
            except KVStoreError as error:
                self._went_away(error)
            except Exception:
                _LOG.exception("%s: a heartbeat failed", self._connection.name)
            with suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_S):
                    await self._beat_now.wait()
                    await asyncio.sleep(_HOLD_S)

    async def _beat(self) -> None:
        self._beat_now.clear()
        registration = self._reporter.registration
        beat = await self._members.beat(registration)
        self._nodes = beat.nodes
        if not beat.registered:
            self._reporter.lose(registration)
        self._came_back()
        if beat.sweep_due and (self._sweep is None or self._sweep.done()):
            self._sweep = asyncio.create_task(self._sweep_once())

    async def _report_for_ever(self) -> None:
        failures = 0
        while True:
            await self._reachable.wait()
            await self._reporter.until_due()
            try:
                await self._reporter.send()
                failures = 0
            except Exception as error:
                failures += 1
                self._not_told(error, failures)
                self._hold_back()
                await asyncio.sleep(min(2**failures * _HOLD_S, _PAUSE_S_MAX))
            await asyncio.sleep(_COALESCE_S)

    async def _sweep_once(self) -> None:
        try:
            await self._directory.sweep()
        except KVStoreError as error:
            _LOG.debug("%s: sweep ended early: %s", self._connection.name, error)

    def _hold_back(self) -> None:
        """One caller found out; the next ones shall not. Whether Redis is away, a heartbeat
        tells."""
        self._reachable.clear()
        self._beat_now.set()

    def _not_told(self, error: Exception, failures: int) -> None:
        """Heartbeats pass, and this does not: a Redis that is away says so elsewhere."""
        if not isinstance(error, KVStoreError):
            _LOG.error("defect while telling own blocks", exc_info=error)
        elif failures == _FAILURES_TO_TELL:
            _LOG.warning("own blocks cannot be told to the directory; trying on: %s", error)

    def _went_away(self, error: KVStoreError) -> None:
        self._reachable.clear()
        if not self._reported_away:
            self._reported_away = True
            _LOG.warning("directory away, going on with local blocks only: %s", error)

    def _came_back(self) -> None:
        self._reachable.set()
        if self._reported_away:
            self._reported_away = False
            _LOG.info("directory is back: %s", self._connection.name)

    def __repr__(self) -> str:
        return f"RedisView({self._connection.name}, {len(self._nodes)} other nodes)"


def _on(
    nodes: Mapping[NodeId, NodeRecord], located: Sequence[Sequence[Replica]]
) -> list[Sequence[Replica]]:
    """Only the replicas on `nodes`. Many blocks share one object, which is looked at once."""
    kept: dict[int, Sequence[Replica]] = {}
    for replicas in located:
        if id(replicas) not in kept:
            kept[id(replicas)] = [r for r in replicas if NodeId(r.publisher) in nodes]
    return [kept[id(replicas)] for replicas in located]

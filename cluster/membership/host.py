"""A conductor in its process: its clock, its view of every member, its snapshot."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Coroutine, Mapping

from cluster.conductor.conductor import Conductor, make_policy
from cluster.conductor.config import ConductorConfig
from cluster.conductor.feed import IndexFeed
from cluster.conductor.types import ConductorStatistics, Targets
from cluster.conductor.waiting import QueueLimits
from cluster.membership.desk import Desk
from cluster.membership.local import LocalConductor
from cluster.membership.methods import ConductorMethods
from cluster.membership.reservations import Reservations
from cluster.membership.snapshot import Snapshot, SnapshotKeeper, read_snapshot
from cluster.membership.views import Views
from kvstore.core.errors import KVStoreError
from kvstore.core.ids import MemberId
from kvstore.transports.security.keys import load_client_keys

_LOG = logging.getLogger(__name__)

_SWEEPS_PER_TTL = 5
_SWEEP_S = 1.0
_DISPATCH_EVERY_S = 0.05


class ConductorHost:
    """`start` → `stop` on one event loop; everything inside runs on that loop.

    Holds soft state only. Without a snapshot, or with one that cannot be used (one warning),
    members register again by themselves, within seconds, and tell what they hold. With one it
    places requests at once by what it knew, and asks members only for what it has missed.
    """

    def __init__(self, config: ConductorConfig) -> None:
        self._config = config
        self._clock = time.monotonic
        self._conductor = self._new()
        self._reservations = Reservations()
        self._views: Views | None = None
        self._desk: Desk | None = None
        self._methods: ConductorMethods | None = None
        self._keeper: SnapshotKeeper | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def methods(self) -> ConductorMethods:
        """Once started."""
        assert self._methods is not None, "start() first"
        return self._methods

    def verbs(self) -> LocalConductor:
        """The conductor for callers in this process, on this loop."""
        return LocalConductor(self.methods)

    def statistics(self) -> ConductorStatistics:
        return self._conductor.statistics()

    async def start(self) -> None:
        """Raises ConfigurationError if the keys cannot be used."""
        keys = load_client_keys(self._config.credentials, "conductor.credentials")
        self._views = Views(keys.secure)
        await self._restore(self._views)
        self._desk = Desk(self._conductor, _DISPATCH_EVERY_S)
        self._methods = ConductorMethods(
            self._conductor,
            self._desk,
            self._views,
            self._reservations,
            self._clock,
            self._config.member_ttl_ms,
        )
        self._run(self._desk.run())
        self._run(self._sweep(self._views, self._desk))
        if self._config.snapshot is not None:
            self._keeper = SnapshotKeeper(
                self._config.snapshot,
                self._config.snapshot_every_ms / 1000,
                self._conductor,
                self._views,
            )
            self._run(self._keeper.run())

    async def stop(self) -> None:
        """Keeps what is worth it. Idempotent."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            await keeper.save()
        views, self._views = self._views, None
        if views is not None:
            await views.close_all()
        self._methods = None

    def _new(self) -> Conductor:
        config = self._config
        return Conductor(
            make_policy(
                config.policy, config.policy_seed, balancing_threshold=config.balancing_threshold
            ),
            self._clock,
            member_ttl_s=config.member_ttl_ms / 1000,
            admission=config.admission,
            targets=Targets(_seconds(config.ttft_target_ms), _seconds(config.itl_target_ms)),
            queue=QueueLimits(
                requests_max=config.queue_max,
                wait_s=config.queue_wait_ms / 1000,
                ahead_s=config.queue_ahead_ms / 1000,
                dispatch_every_s=_DISPATCH_EVERY_S,
            ),
            across_zones=config.cross_zone_factor,
            explained_max=config.explained_max,
        )

    def _run(self, coroutine: Coroutine[object, object, None]) -> None:
        self._tasks.append(asyncio.create_task(coroutine))

    async def _sweep(self, views: Views, desk: Desk) -> None:
        while True:
            await asyncio.sleep(min(_SWEEP_S, self._config.member_ttl_ms / 1000 / _SWEEPS_PER_TTL))
            for member_id in self._conductor.expire():
                _LOG.warning("member %s was silent for too long: forgotten", member_id)
                await views.close(member_id)
            for request_id in self._reservations.expire(self._clock()):
                self._conductor.cancel(request_id)
            desk.changed()

    async def _restore(self, views: Views) -> None:
        snapshot = await self._read()
        if snapshot is None:
            return
        try:
            feeds = snapshot.restore(self._conductor)
        except KVStoreError as error:
            self._ignore(error)
            self._conductor = self._new()
            return
        await self._follow(snapshot, feeds, views)
        _LOG.info("warm from %s: %s", self._config.snapshot, self._conductor.statistics())

    async def _read(self) -> Snapshot | None:
        path = self._config.snapshot
        if path is None:
            return None
        try:
            return await asyncio.to_thread(read_snapshot, path)
        except FileNotFoundError:
            return None
        except (OSError, KVStoreError) as error:
            self._ignore(error)
            return None

    async def _follow(
        self, snapshot: Snapshot, feeds: Mapping[MemberId, IndexFeed], views: Views
    ) -> None:
        for kept in snapshot.state.members:
            member_id = kept.member.member_id
            position = snapshot.positions.get(member_id)
            if kept.draining:
                continue
            try:
                await views.open(kept.member, kept.epoch, feeds[member_id], position)
            except KVStoreError:  # its endpoints are none: as if it had never been
                self._conductor.forget(member_id)

    def _ignore(self, error: Exception) -> None:
        _LOG.warning("the conductor starts without what it knew: %s", error)


def _seconds(milliseconds: float | None) -> float:
    """None: no target."""
    return math.inf if milliseconds is None else milliseconds / 1000

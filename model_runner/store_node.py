"""The store connector for a worker with a node on its host."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from kvstore.client.deadline import Deadline
from kvstore.client.sync import SyncClient
from kvstore.core.errors import DeadlineExceededError
from kvstore.core.ports import Clock
from kvstore.tiers.base import TierKind
from kvstore.tiers.device.cache import DeviceCache
from model_runner.kv_groups import KVGroup
from model_runner.load_or_compute import LoadPlanner
from model_runner.misses import Miss
from model_runner.store import BlockRun, Fetched, LayerWriter, Published, Wanted
from model_runner.store_loading import BlockLoader
from model_runner.store_publishing import Publisher
from model_runner.store_session import NodeSession

_FETCH_THREADS = 4
"""Most of them wait, for the node or for whoever writes the blocks; copies hold no GIL."""


@dataclass(frozen=True, slots=True)
class StoreStatistics:
    fetched_blocks: int
    missed_blocks: int
    """Asked for, and not there (in time), or cheaper to compute."""
    published_blocks: int
    """Counted in each KV group, as are those skipped."""
    skipped_blocks: int
    """Not published: too many were on their way."""
    errors: Mapping[str, int]
    """By class of error."""


class NodeStore:
    """Implements `StoreConnector` over a client of the local node.

    Threads: fetches and publications run in small pools of their own, so that one does not wait
    for the other. Bound: `max_pending_blocks` on their way to the store (a larger single batch goes
    if nothing else does); fetches are bounded by the requests that wait for them.
    Ownership: owns the client, which it opens when it first succeeds in doing so; the caches and
    the planner are the engine's.
    """

    enabled = True

    def __init__(
        self,
        groups: Sequence[KVGroup],
        caches: Sequence[DeviceCache],
        connect: Callable[[], SyncClient],
        *,
        deadline_s: float,
        max_pending_blocks: int,
        planner: LoadPlanner | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        """`caches`: one for each of `groups`. `planner`: None loads all that is there."""
        assert len(groups) == len(caches) >= 1
        self._deadline_s = deadline_s
        self._session = NodeSession(connect, clock)
        self._loader = BlockLoader(groups, caches, planner, clock)
        self._publisher = Publisher(
            self._session,
            groups,
            caches,
            deadline_s=deadline_s,
            max_pending_blocks=max_pending_blocks,
        )
        self._lock = threading.Lock()
        self._fetched = self._missed = 0
        self._fetchers = ThreadPoolExecutor(_FETCH_THREADS, "store-fetch")

    def open(self) -> None:
        """Connect now if the node is there; if not, a later call will.

        Raises InvalidArgumentError if the node can never serve this worker: its blocks do not fit,
        or the endpoint is none.
        """
        self._session.client()

    def fetch(self, wanted: Wanted, done: Fetched) -> None:
        self._fetchers.submit(self._fetch, wanted, Deadline(self._deadline_s), done)

    def publish(self, runs: Sequence[BlockRun], done: Published) -> bool:
        return self._publisher.publish(runs, done)

    def follow(self, runs: Sequence[BlockRun], done: Published) -> LayerWriter | None:
        return self._publisher.follow(runs, done)

    def statistics(self) -> StoreStatistics:
        with self._lock:
            return StoreStatistics(
                self._fetched,
                self._missed,
                self._publisher.published_blocks,
                self._publisher.skipped_blocks,
                self._session.guard.errors,
            )

    def close(self) -> None:
        self._fetchers.shutdown(cancel_futures=True)
        self._publisher.close()
        self._session.close()

    def _fetch(self, wanted: Wanted, deadline: Deadline, done: Fetched) -> None:
        tiers: Sequence[TierKind] = []
        reason = Miss.NO_STORE
        try:
            client = self._session.client() if self._session.guard.may_read else None
            if client is not None:
                reason = Miss.LATE
            if client is not None and deadline.left_s:  # earlier fetches may have taken it all
                tiers = self._loader.load(client, wanted, deadline)
                self._session.guard.succeeded()
        except Exception as error:  # the boundary of a thread: no store, no hit
            self._session.guard.failed("fetch", error)
            reason = Miss.LATE if isinstance(error, DeadlineExceededError) else Miss.FAILED
        with self._lock:
            self._fetched += len(tiers)
            self._missed += len(wanted.hashes) - len(tiers)
        unsaid = len(wanted.hashes) - len(tiers) - len(wanted.missed)
        wanted.missed.extend([reason] * unsaid)
        done(tiers)

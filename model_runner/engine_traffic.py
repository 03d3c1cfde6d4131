"""What goes between an engine's device tier and the store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from kvstore.tiers.base import TierKind
from kvstore.tiers.device.pool import BlockPool
from model_runner.engine_blocks import BlockTables
from model_runner.engine_output import EngineOutput, EngineStatistics
from model_runner.engine_request import LiveRequest, LiveRequests
from model_runner.store import BlockRun, StoreConnector
from model_runner.types import Request

Post = Callable[[Callable[[], None]], None]
"""Has something called between two steps; may be used from any thread."""


class StoreTraffic:
    """Starts loads, publications and demotions, and does what is to be done when they are over.

    Owned by the engine's thread. It never waits for the store: whatever the store answers comes
    back through `post`. Blocks that are copied out keep a reference until then.
    """

    def __init__(
        self,
        store: StoreConnector,
        pool: BlockPool,
        blocks: BlockTables,
        live: LiveRequests,
        post: Post,
    ) -> None:
        self._store = store
        self._pool = pool
        self._blocks = blocks
        self._live = live
        self._post = post
        self._preemptions = self._demoted_blocks = self._loaded_back_blocks = 0

    def statistics(self) -> EngineStatistics:
        return EngineStatistics(self._preemptions, self._demoted_blocks, self._loaded_back_blocks)

    def start(self, request: Request) -> None:
        """Admitted. The store may have evicted what is here, and have what is not here."""
        live = self._live.get(request.request_id)
        assert live is not None
        self.publish([(live, self._blocks.hits(request))])
        if request.loading:
            self._store.fetch(
                self._blocks.wanted(request),
                lambda tiers: self._post(partial(self._loaded, request, tiers)),
            )

    def publish(self, named: Sequence[tuple[LiveRequest, BlockRun]]) -> None:
        """Hand the blocks of a whole step to the store in one batch, and their references with
        them."""
        lives = [live for live, run in named if run.hashes]
        whole = _joined([run for _, run in named])
        if not lives:
            return
        for live in lives:
            live.num_publishing += 1
        published = partial(self._published, lives, whole.block_ids)
        if not self._store.publish([whole], partial(self._post, published)):
            published()

    def demote(self) -> bool:
        """Hand the blocks of requests that were preempted to the store, which copies those that it
        lacks. Whether there were any: room may have come of it."""
        preempted = self._blocks.take_preempted()
        self._preemptions += len(preempted)
        whole = _joined(preempted)
        if whole.hashes:
            left = partial(self._blocks.left, whole.block_ids)
            if self._store.publish([whole], partial(self._post, left)):
                self._demoted_blocks += len(whole.hashes)
            else:
                left()
        return bool(preempted)

    def settle(self, live: LiveRequest) -> None:
        """Tell that all is published, once it is answered and that is so."""
        done = live.answered and not live.num_publishing
        if done and self._live.leave(live.request.request_id):
            live.emit(EngineOutput(published=True))

    def _loaded(self, request: Request, tiers: Sequence[TierKind]) -> None:
        self._blocks.loaded(request, tiers)
        if request.num_preemptions:
            self._loaded_back_blocks += len(tiers)
        if self._live.get(request.request_id) is None:  # cancelled meanwhile
            self._blocks.release(request)

    def _published(self, lives: Sequence[LiveRequest], block_ids: Sequence[int]) -> None:
        self._pool.release(block_ids)
        for live in lives:
            live.num_publishing -= 1
            self.settle(live)


def _joined(runs: Sequence[BlockRun]) -> BlockRun:
    return BlockRun(
        [block_hash for run in runs for block_hash in run.hashes],
        [block for run in runs for block in run.block_ids],
    )

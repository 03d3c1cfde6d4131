"""What goes between an engine's device tier and the store."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias, TypeVar

from kvstore.tiers.base import TierKind
from model_runner.attention import OnLayer
from model_runner.engine_blocks import BlockTables
from model_runner.engine_output import EngineOutput, EngineStatistics
from model_runner.engine_request import LiveRequest, LiveRequests
from model_runner.store import BlockRun, LayerWriter, Published, StoreConnector, Wanted
from model_runner.types import Chunk, Request

Post = Callable[[Callable[[], None]], None]
"""Has something called between two steps; may be used from any thread."""


_Runs: TypeAlias = Sequence[BlockRun]
_Named: TypeAlias = tuple[LiveRequest, _Runs]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Followed:
    """Blocks that go to the store while a step computes them."""

    runs: Mapping[Request, Sequence[BlockRun]]
    writer: LayerWriter

    def end(self, failed: Collection[Request]) -> None:
        without = [run for request in failed for run in self.runs.get(request, ())]
        if self.runs.keys() <= set(failed):
            self.writer.abandon()
        else:
            self.writer.finish(frozenset(hash_ for run in without for hash_ in run.hashes))


class StoreTraffic:
    """Starts loads, publications and demotions, and does what is to be done when they are over.

    Owned by the engine's thread. It never waits for the store: whatever the store answers comes
    back through `post`. Blocks that are copied out keep a reference until then.
    """

    def __init__(
        self,
        store: StoreConnector,
        blocks: BlockTables,
        live: LiveRequests,
        post: Post,
    ) -> None:
        self._store = store
        self._blocks = blocks
        self._live = live
        self._post = post
        self._followed: _Followed | None = None
        """From `follow` to `publish`."""
        self._preemptions = self._demoted_blocks = self._loaded_back_blocks = 0

    def statistics(self) -> EngineStatistics:
        return EngineStatistics(self._preemptions, self._demoted_blocks, self._loaded_back_blocks)

    def start(self, request: Request) -> None:
        """Admitted. The store may have evicted what is here, and have what is not here."""
        self._publish([(self._live_of(request), self._blocks.hits(request))])
        if request.loading:
            wanted = self._blocks.wanted(request)
            self._store.fetch(
                wanted,
                lambda tiers: self._post(partial(self._loaded, request, wanted, tiers)),
            )

    def follow(self, chunks: Sequence[Chunk]) -> OnLayer | None:
        """Before a step of these chunks: what those of prompts complete goes to the store while it
        is computed. Returns whom to tell of its layers; `computed` and `publish` come after it."""
        self._followed = None
        runs = {
            chunk.request: self._blocks.completing(chunk.request, chunk.num_tokens)
            for chunk in chunks
            if chunk.num_tokens > 1
        }
        runs = {request: its for request, its in runs.items() if any(run.hashes for run in its)}
        if not runs:
            return None
        named = [(self._live_of(request), its) for request, its in runs.items()]
        writer = self._hand_over(named, self._store.follow)
        if writer is None:
            return None
        self._followed = _Followed(runs, writer)
        return writer.layer_computed

    def computed(self, failed: Collection[Request]) -> None:
        """The step is over. Nothing becomes visible of what it computed for those that failed."""
        if self._followed is not None:
            self._followed.end(failed)

    def publish(self, named: Sequence[_Named]) -> None:
        """Hand the blocks of a whole step to the store in one batch, and their references with
        them. Those that were followed are there already, or on their way."""
        followed, self._followed = self._followed, None
        rest = []
        for live, runs in named:
            if followed is not None and live.request in followed.runs:
                self._blocks.give_back(runs)
            else:
                rest.append((live, runs))
        self._publish(rest)

    def _publish(self, named: Sequence[_Named]) -> None:
        named = [(live, runs) for live, runs in named if any(run.hashes for run in runs)]
        if named:
            self._hand_over(named, self._store.publish)

    def demote(self) -> bool:
        """Hand the blocks of requests that were preempted to the store, which copies those that it
        lacks. Whether there were any: room may have come of it."""
        preempted = self._blocks.take_preempted()
        self._preemptions += len(preempted)
        whole = _joined([run for runs in preempted for run in runs])
        if whole:
            left = partial(self._blocks.left, whole)
            if self._store.publish(whole, partial(self._post, left)):
                self._demoted_blocks += sum(len(run.hashes) for run in whole)
            else:
                left()
        return bool(preempted)

    def settle(self, live: LiveRequest) -> None:
        """Tell that all is published, once it is answered and that is so."""
        done = live.answered and not live.num_publishing
        if done and self._live.leave(live.request.request_id):
            live.emit(EngineOutput(published=True))

    def _hand_over(self, named: Sequence[_Named], take: Callable[[_Runs, Published], T]) -> T:
        """Have blocks of these requests taken, which hear when that is over. At once, if they are
        not taken."""
        lives = [live for live, _ in named]
        whole = _joined([run for _, runs in named for run in runs])
        for live in lives:
            live.num_publishing += 1
        published = partial(self._published, lives, whole)
        taken = take(whole, partial(self._post, published))
        if not taken:
            published()
        return taken

    def _live_of(self, request: Request) -> LiveRequest:
        live = self._live.get(request.request_id)
        assert live is not None
        return live

    def _loaded(self, request: Request, wanted: Wanted, tiers: Sequence[TierKind]) -> None:
        self._blocks.loaded(request, tiers)
        if request.num_preemptions:
            self._loaded_back_blocks += len(tiers)
        else:
            request.missed_blocks = wanted.missed
        if self._live.get(request.request_id) is None:  # cancelled meanwhile
            self._blocks.release(request)

    def _published(self, lives: Sequence[LiveRequest], runs: Sequence[BlockRun]) -> None:
        self._blocks.give_back(runs)
        for live in lives:
            live.num_publishing -= 1
            self.settle(live)


def _joined(runs: Sequence[BlockRun]) -> list[BlockRun]:
    """One run of each KV group that has any blocks here."""
    groups = sorted({run.group for run in runs if run.hashes})
    return [_joined_group([run for run in runs if run.group == group]) for group in groups]


def _joined_group(runs: Sequence[BlockRun]) -> BlockRun:
    return BlockRun(
        [block_hash for run in runs for block_hash in run.hashes],
        [block for run in runs for block in run.block_ids],
        runs[0].group,
    )

"""What an engine does between two waits: everything but the thread that does it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from kvstore.core.errors import KVStoreError
from kvstore.core.ids import BlockKeys, RequestId
from kvstore.core.ports import Clock
from kvstore.events.base import EventSink
from kvstore.tiers.base import TierKind
from kvstore.tiers.device.pool import BlockPool
from model_runner.engine_blocks import BlockTables
from model_runner.engine_output import EngineLoad, EngineOutput, EngineStatistics
from model_runner.engine_request import LiveRequest, LiveRequests
from model_runner.engine_step import StepModel, StepResult, compute_step
from model_runner.engine_traffic import Post, StoreTraffic
from model_runner.load_or_compute import LoadPlanner
from model_runner.step_budget import StepBudget, StepTooLargeError, as_too_large
from model_runner.step_meter import StepMeter
from model_runner.store import StoreConnector
from model_runner.twins import Twins
from model_runner.types import Chunk, FinishReason, Request, Scheduler

_LOG = logging.getLogger(__name__)


class EngineCore:
    """One step after another. Owned by one thread.

    ```
    add ─▶ waiting ─admit─▶ loading ─▶ computed, step by step ─▶ answered ─▶ published
              ▲             (store)       │        └ full blocks: named, published
              └──────── preempted ◀───────┘ full blocks: to the store, then free
    ```
    It never waits for the store: a request that is being fetched is `loading` while others are
    computed, and blocks being published keep a reference until they are copied out. A preempted
    request keeps its tokens, its sampling state and what was told of it: it goes on as if nothing
    had happened, from the blocks that are found again. A request whose prompt another one is about
    to compute waits for it before `add` goes on (see `Twins`).
    """

    def __init__(
        self,
        model: StepModel,
        scheduler: Scheduler,
        store: StoreConnector,
        sink: EventSink,
        live: LiveRequests,
        post: Post,
        clock: Clock,
        planner: LoadPlanner | None = None,
    ) -> None:
        """`planner` learns from the steps what they cost."""
        self._model = model
        self._scheduler = scheduler
        self._sink = sink
        self._live = live
        self._clock = clock
        self.pools = [BlockPool(cache.num_blocks) for cache in model.caches]
        self._blocks = BlockTables(model.groups, self.pools, asks_store=store.enabled)
        self._traffic = StoreTraffic(store, self._blocks, live, post)
        self._twins = Twins()
        self._budget = StepBudget()
        self._meter = StepMeter(planner)

    def add(self, request: Request) -> None:
        """Queue a request that has entered `live`."""
        if self._twins.may_start(request, self._blocks.prefix(request)):
            self._scheduler.add(request)

    def cancel(self, request_id: RequestId) -> None:
        live = self._live.get(request_id)
        if live is None:
            return
        if live.answered:
            self._live.leave(request_id)
        else:
            self._finish(live, EngineOutput(finish_reason=FinishReason.CANCELLED))

    def step(self) -> bool:
        """Admit, compute, tell. True if there may be more to do at once; if not, only a call that
        is posted can change that."""
        chunks = self._scheduler.schedule(self._blocks)
        preempted = self._traffic.demote()
        for request in self._blocks.take_admitted():
            self._traffic.start(request)
        self._meter.scheduled(chunks)
        if chunks:
            self._compute(chunks)
        self._record_events()
        return bool(chunks) or preempted

    def statistics(self) -> EngineStatistics:
        return replace(self._traffic.statistics(), steps=self._meter.statistics())

    def load(self) -> EngineLoad:
        requests = [live.request for live in self._live.snapshot() if not live.answered]
        return EngineLoad(
            running=self._scheduler.num_running,
            waiting=max(0, len(requests) - self._scheduler.num_running),
            waiting_tokens=sum(request.num_uncomputed for request in requests),
            free_blocks=self.pools[0].num_free,
            total_blocks=self.pools[0].num_blocks,
        )

    def end_all(self, error: KVStoreError) -> None:
        """Tell all live requests that they will not be finished. Nothing may follow."""
        for live in self._live.snapshot():
            if self._live.leave(live.request.request_id):
                live.emit(EngineOutput(error=error))

    def _compute(self, chunks: Sequence[Chunk]) -> None:
        """At once, or where the device has no memory for that, in parts."""
        waiting = list(chunks)
        while waiting:
            part = self._budget.part(waiting)
            started_s = self._clock()
            results = self._results(part)
            if isinstance(results[0], StepTooLargeError):
                if self._budget.shrink(part):
                    continue
            else:
                self._budget.went_well()
            del waiting[: len(part)]
            self._account(part, results, started_s, self._clock() - started_s)

    def _account(
        self,
        chunks: Sequence[Chunk],
        results: Sequence[StepResult],
        started_s: float,
        took_s: float,
    ) -> None:
        """What a step comes to for those who took part in it."""
        self._meter.computed(chunks, took_s)
        lives = []
        for chunk in chunks:
            live = self._live.get(chunk.request.request_id)
            assert live is not None
            live.computed(started_s, took_s)
            lives.append(live)
        self._name_blocks(lives, chunks, results)
        for live, chunk, result in zip(lives, chunks, results, strict=True):
            self._tell(live, result, live.request.num_computed - chunk.num_tokens)

    def _results(self, chunks: Sequence[Chunk]) -> Sequence[StepResult]:
        try:
            results = compute_step(self._model, chunks, self._traffic.follow(chunks))
        except Exception as error:
            # The boundary of a step: whatever the model raises ends these requests, no others.
            too_large = as_too_large(error)
            if too_large is None:
                _LOG.exception("a step of %d requests failed", len(chunks))
            results = [too_large or _step_error(error)] * len(chunks)
        pairs = zip(chunks, results, strict=True)
        self._traffic.computed(
            [chunk.request for chunk, result in pairs if isinstance(result, KVStoreError)]
        )
        return results

    def _name_blocks(
        self,
        lives: Sequence[LiveRequest],
        chunks: Sequence[Chunk],
        results: Sequence[StepResult],
    ) -> None:
        named = []
        for live, chunk, result in zip(lives, chunks, results, strict=True):
            if not isinstance(result, KVStoreError):
                live.request.num_computed += chunk.num_tokens
                named.append((live, self._blocks.complete(live.request)))
        self._traffic.publish(named)

    def _tell(self, live: LiveRequest, result: StepResult, start: int) -> None:
        """What came of the chunk that began at `start`."""
        if isinstance(result, KVStoreError):
            self._finish(live, EngineOutput(error=result))
            return
        live.tell_prompt(start, result.prompt_logprobs)
        if result.sampled is None:  # its prompt goes on in the next step
            return
        for twin in self._twins.computed(live.request):
            self._scheduler.add(twin)
        live.request.token_ids.append(result.sampled.token_id)
        output = live.output(
            result.sampled, self._model.eos_token_ids, self._blocks.block_size_tokens
        )
        if output.first is not None:
            self._meter.answered(output.first.hit_tokens)
        if output.finish_reason is None:
            live.emit(output)
        else:
            self._finish(live, output)

    def _finish(self, live: LiveRequest, output: EngineOutput) -> None:
        """Give back what the request holds (a loading one when that is over), and tell."""
        request = live.request
        self._scheduler.remove(request)
        for twin in self._twins.left(request):
            self.add(twin)
        if not request.loading:
            self._blocks.release(request)
        live.answered = True
        live.emit(output)
        if output.finish_reason in (FinishReason.STOP, FinishReason.LENGTH):
            self._traffic.settle(live)
        else:
            self._live.leave(request.request_id)

    def _record_events(self) -> None:
        """Of the first KV group's blocks, by which requests are routed: all groups' blocks come
        together, and where one keeps only its window, the first has what goes before it."""
        (stored, removed), *_ = [pool.drain_events() for pool in self.pools]
        fingerprint = self._model.groups[0].layout.fingerprint
        if removed:
            self._sink.removed(TierKind.DEVICE, BlockKeys(fingerprint, removed))
        if stored:
            self._sink.stored(TierKind.DEVICE, BlockKeys(fingerprint, stored))


def _step_error(error: Exception) -> KVStoreError:
    if isinstance(error, KVStoreError):
        return error
    failed = KVStoreError(f"the model step failed ({type(error).__name__}: {error}): retry")
    failed.__cause__ = error
    return failed

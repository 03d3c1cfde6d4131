"""One prompt's way through the cluster: route, prefill, decode, and another way if one fails.

```
route ─▶ prefill worker ─▶ first token ─▶ published ─▶ decode worker ─▶ tokens
  │          │                   └─ both on one host: ─────▲   │
  │          │ fails before its first token: ──────────────┤   │ fails: another decode worker goes
  └─ no prefill worker chosen: ────────────────────────────┘   └ on after the tokens so far
```
On one host the decode worker reads the blocks while they are being published.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass

from cluster.gateway.catalog import ModelCatalog
from cluster.gateway.channels import WorkerChannels
from cluster.gateway.handoff import Publishing, share_node
from cluster.gateway.journal import GenerationTrace, RequestRecord
from cluster.gateway.messages import generate_request, route_request
from cluster.gateway.observation import Observation
from cluster.gateway.prompts import Job
from cluster.gateway.reports import CompletionReporter
from cluster.gateway.shared_route import SharedRoute
from cluster.membership.verbs import ConductorVerbs
from cluster.wire.v1 import conductor_pb2 as conductor
from kvstore.core.errors import (
    DeadlineExceededError,
    InvalidArgumentError,
    KVStoreError,
    ProtocolError,
    ResourceExhaustedError,
    UnavailableError,
)
from model_runner.wire.v1 import generation_pb2 as generation

_LOG = logging.getLogger(__name__)

ROUTE_WAIT_S = 60.0
"""Longest wait for a route: a conductor lets requests wait for their turn."""

TokenIds = AsyncGenerator[Sequence[int], None]


@dataclass(frozen=True, slots=True)
class Cluster:
    """All that a generation talks to."""

    conductor: ConductorVerbs
    catalog: ModelCatalog
    workers: WorkerChannels
    reports: CompletionReporter


class Generation:
    """Generates one answer to one prompt. Owned by one task.

    `deadline_s` is of the event loop's clock. What the properties say is final when `tokens` ends.
    """

    def __init__(
        self,
        job: Job,
        cluster: Cluster,
        observation: Observation,
        *,
        deadline_s: float,
        shared_route: SharedRoute,
        record: RequestRecord,
    ) -> None:
        self.job = job
        self.observation = observation
        self.output_token_ids: list[int] = []
        self.logprobs: list[generation.TokenLogprobs] = []
        """One for each of `output_token_ids`, if asked for."""
        self.prompt_logprobs: list[generation.TokenLogprobs] = []
        """One for each prompt token but the first, if asked for: there with the first token."""
        self.stopped = False
        self.prefill_worker = ""
        self.decode_worker = ""
        self._cluster = cluster
        self._deadline_s = deadline_s
        self._shared_route = shared_route
        self._record = record
        self._first_route: conductor.RouteResponse | None = None
        self._detoured = False
        """Some other worker took over than the one that was routed to."""
        self._publishing: Publishing | None = None

    @property
    def finished(self) -> bool:
        """Stopped, or as long as it may be: known even if the worker dies before it says so."""
        return self.stopped or len(self.output_token_ids) >= self.job.sampling.max_tokens

    @property
    def _prompt_is_told(self) -> bool:
        """Nothing is missing of the prompt's log probabilities."""
        asked = self.job.sampling.HasField("prompt_logprobs")
        return not asked or len(self.prompt_logprobs) == len(self.job.prompt_token_ids) - 1

    async def tokens(self) -> TokenIds:
        """Token ids as they come. Close it (`contextlib.aclosing`) to cancel the worker's call.

        Raises what the workers or the conductor raised when no other way was left.
        """
        failure: KVStoreError | None = None
        try:
            route = self._first_route = await self._shared_route.get(self._any_route)
            if route.HasField("prefill"):
                async with aclosing(self._prefill(route)) as first:
                    async for token_ids in first:
                        yield token_ids
            if not self.finished:
                async with aclosing(self._decode(route.decode)) as rest:
                    async for token_ids in rest:
                        yield token_ids
            await self._published()
        except KVStoreError as error:
            failure = error
            raise
        finally:
            if self._publishing is not None:
                await self._publishing.cancel()
            self._report(failure)

    async def _any_route(self) -> conductor.RouteResponse:
        """As the conductor says; while it is away, workers as last seen take turns."""
        catalog = self._cluster.catalog
        in_turn = catalog.in_turn(self.job.model.name) if catalog.away else None
        if in_turn is not None:
            return in_turn
        try:
            return await self._route()
        except (UnavailableError, DeadlineExceededError) as error:
            in_turn = catalog.in_turn(self.job.model.name)
            if in_turn is None:
                raise
            _LOG.warning("no route, workers take turns: %s", error)
            return in_turn

    async def _route(self) -> conductor.RouteResponse:
        """Asked again for the same request, the conductor avoids the workers it named before."""
        deadline_s = min(self._left_s(), ROUTE_WAIT_S)
        return await self._cluster.conductor.route(route_request(self.job), deadline_s=deadline_s)

    async def _prefill(self, route: conductor.RouteResponse) -> TokenIds:
        """The first token, at once. Ends when the prompt's blocks can be fetched, or when the
        worker failed: then the decode worker computes what is missing."""
        worker = route.prefill
        self.prefill_worker = worker.member_id
        stream = self._cluster.workers.prefill(
            worker.grpc_address, self._request(), timeout_s=self._left_s()
        )
        try:
            async with AsyncExitStack() as call:
                chunks = await call.enter_async_context(aclosing(stream))
                async for chunk in chunks:
                    if token_ids := self._take(chunk):
                        yield token_ids
                        break
                if not self.output_token_ids:
                    raise ProtocolError(f"{worker.member_id} ended its stream without a token")
                call.pop_all()
                self._publishing = Publishing(chunks)
        except KVStoreError as error:
            # A full queue is no failure: were it passed by, the load would move to the decode
            # workers, whose running requests would all slow down.
            overloaded = isinstance(error, ResourceExhaustedError) and not self.output_token_ids
            if overloaded or not _another_way_may_work(error):
                raise
            self._detoured = True
            _LOG.warning("prefill worker %s failed: %s", worker.member_id, error)
        if not share_node(worker, route.decode):
            await self._published()

    async def _published(self) -> None:
        """Until the prompt's blocks are published, or the prefill worker failed to.

        Waits even if the first token is the last one: closing the call could end the publishing.
        """
        if self._publishing is None:
            return
        try:
            await self._publishing.over()
        except KVStoreError as error:
            if not _another_way_may_work(error):
                raise
            self._detoured = True
            _LOG.warning("prefill worker %s did not publish: %s", self.prefill_worker, error)
        self._publishing = None

    async def _decode(self, worker: conductor.Member) -> TokenIds:
        for retries_left in (1, 0):
            try:
                async with aclosing(self._decode_on(worker)) as stream:
                    async for token_ids in stream:
                        yield token_ids
                return
            except KVStoreError as error:
                if self.finished:
                    return
                if not retries_left or not _another_way_may_work(error):
                    raise
                _LOG.warning("decode worker %s failed: %s", worker.member_id, error)
                worker = await self._another_decode_worker(worker, error)

    async def _decode_on(self, worker: conductor.Member) -> TokenIds:
        self.decode_worker = worker.member_id
        stream = self._cluster.workers.decode(
            worker.grpc_address, self._request(), timeout_s=self._left_s()
        )
        async with aclosing(stream) as chunks:
            async for chunk in chunks:
                if token_ids := self._take(chunk):
                    yield token_ids
                if chunk.finish_reason != generation.FINISH_REASON_UNSPECIFIED:
                    return
        if not self.finished:
            raise ProtocolError(f"decode worker {worker.member_id} ended its stream too early")

    async def _another_decode_worker(
        self, failed: conductor.Member, error: KVStoreError
    ) -> conductor.Member:
        """The conductor's choice; without a conductor, the best of those last seen.

        The failed one itself where there is no other: it may have been a moment's trouble. Not if
        it is full: then that is the answer.
        """
        self._detoured = True
        try:
            chosen = (await self._route()).decode
        except KVStoreError as route_error:
            _LOG.warning("no new route: %s", route_error)
            chosen = failed
        if chosen.member_id != failed.member_id:
            return chosen
        other = self._cluster.catalog.other_decode_worker(self.job.model.name, failed)
        if other is None and isinstance(error, ResourceExhaustedError):
            raise error
        return other or failed

    def _request(self) -> generation.GenerateRequest:
        """For what is still missing. A prompt's log probabilities come from one worker, or anew."""
        request = generate_request(self.job, self.output_token_ids)
        if self._prompt_is_told:
            request.sampling.ClearField("prompt_logprobs")
        else:
            self.prompt_logprobs.clear()
        return request

    def _take(self, chunk: generation.GenerateChunk) -> list[int]:
        """Takes notice of a chunk; returns its tokens."""
        self.observation.chunk(chunk)
        token_ids = list(chunk.token_ids)
        asked = self.job.sampling.HasField("logprobs")
        if asked and len(chunk.logprobs) != len(token_ids):
            raise ProtocolError("a worker sent tokens without their logprobs: run one version only")
        self.output_token_ids += token_ids
        self.logprobs += chunk.logprobs
        self.prompt_logprobs += chunk.prompt_logprobs
        if token_ids and not self._prompt_is_told:
            raise ProtocolError("a worker sent a token before its prompt's logprobs")
        self.stopped = chunk.finish_reason == generation.FINISH_REASON_STOP
        return token_ids

    def _left_s(self) -> float:
        return max(0.0, self._deadline_s - asyncio.get_running_loop().time())

    def _report(self, failure: KVStoreError | None) -> None:
        failed = failure is not None or not self.output_token_ids
        completion = self.observation.completion(
            self.job.request_id, failed=failed, as_routed=not self._detoured
        )
        self._cluster.reports.report(completion)
        trace = GenerationTrace(
            generation_id=self.job.request_id,
            prompt_tokens=len(self.job.prompt_token_ids),
            route=self._first_route,
            prefill_worker=self.prefill_worker,
            decode_worker=self.decode_worker,
            observed=completion,
            missed_blocks=self.observation.missed_blocks,
            error=None if failure is None else str(failure),
        )
        self._record.generations.append(trace)


def _another_way_may_work(error: KVStoreError) -> bool:
    """Not if the request itself is at fault, or its time is up."""
    return type(error) is not InvalidArgumentError and not isinstance(error, DeadlineExceededError)

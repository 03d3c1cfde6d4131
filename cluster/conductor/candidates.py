"""What is predicted of each worker for one request."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.conductor.cost import LoadWork, PrefillWork
from cluster.conductor.index import Match, TierBlocks
from cluster.conductor.inflight import InFlightTable
from cluster.conductor.members import Record
from cluster.conductor.types import Candidate, DecodeCandidate, Request, TierTokens
from kvstore.core.layout import KVLayout

Features = tuple[float, float, float]

_NOTHING = TierBlocks()


@dataclass(frozen=True, slots=True)
class _Terms:
    """What is the same for all workers that can use the same blocks."""

    tokens: TierTokens
    rest: Features
    """Prefill of what they cannot use."""
    load: Features
    """Loading what is not on the device."""
    join_near: Features
    """Loading the whole prompt from the node, but for what is on the device."""


class Predictor:
    """Turns what is known at one moment into candidates for one request."""

    def __init__(
        self,
        request: Request,
        layout: KVLayout,
        match: Match,
        in_flight: InFlightTable,
        now_s: float,
    ) -> None:
        self.layout = layout
        self.now_s = now_s
        self._request = request
        self._match = match
        self._in_flight = in_flight
        self._terms: dict[TierBlocks, _Terms] = {}
        tokens = request.prompt_tokens + request.max_tokens
        self.blocks_needed = -(-tokens // layout.block_size_tokens)

    def prefill(self, worker: Record) -> Candidate:
        terms = self._terms_of(worker)
        cost = worker.cost
        return Candidate(
            member=worker.member,
            queue_s=self._queue_s(worker),
            load_s=cost.load.predict(terms.load),
            prefill_s=cost.prefill.predict(terms.rest),
            tokens=terms.tokens,
            routed=worker.routed,
        )

    def decode(self, worker: Record) -> DecodeCandidate:
        terms = self._terms_of(worker)
        cost = worker.cost
        batch = self._batch(worker) + 1
        return DecodeCandidate(
            member=worker.member,
            itl_s=cost.itl.predict((1.0, float(batch))),
            join_near_s=cost.load.predict(terms.join_near),
            join_far_s=cost.load.predict(terms.load) + cost.prefill.predict(terms.rest),
            batch=batch,
            fits=self._fits(worker),
        )

    def _terms_of(self, worker: Record) -> _Terms:
        blocks = self._match.prefixes.get(worker.slot, _NOTHING)
        terms = self._terms.get(blocks)
        if terms is None:
            terms = self._terms[blocks] = self._new_terms(blocks)
        return terms

    def _new_terms(self, blocks: TierBlocks) -> _Terms:
        size, block_bytes = self.layout.block_size_tokens, self.layout.block_bytes
        prompt_tokens = self._request.prompt_tokens
        remote = max(0, self._match.on_nodes - blocks.total)
        # Of a prompt wholly cached the last token is computed again: its logits are needed.
        computed = max(1, prompt_tokens - blocks.total * size)
        not_on_device = max(0, prompt_tokens // size - blocks.device)
        return _Terms(
            tokens=TierTokens(
                blocks.device * size, blocks.host * size, blocks.disk * size, remote * size
            ),
            rest=PrefillWork(computed, prompt_tokens).features,
            load=LoadWork(blocks.host * block_bytes, blocks.disk * block_bytes).features,
            join_near=LoadWork(not_on_device * block_bytes, 0).features,
        )

    def _queue_s(self, worker: Record) -> float:
        """Our own account of what was routed there, or the worker's if that is longer: it may have
        been slower than predicted, or have clients of its own."""
        own_s = worker.backlog.waiting_s(self.now_s)
        waiting, tokens = worker.load.waiting, worker.load.waiting_tokens
        if not tokens:
            return own_s
        prompts = max(1, waiting)
        each = PrefillWork(tokens // prompts, tokens // prompts)
        return max(own_s, prompts * worker.cost.prefill.predict(each.features))

    def _batch(self, worker: Record) -> int:
        reported = worker.load.running + worker.load.waiting
        return max(reported, self._in_flight.sequences(worker.member.member_id))

    def _fits(self, worker: Record) -> bool:
        load = worker.load
        if not load.total_blocks:
            return True  # not reported yet
        unpromised = load.total_blocks - self._in_flight.blocks(worker.member.member_id)
        return self.blocks_needed <= min(load.free_blocks, unpromised)

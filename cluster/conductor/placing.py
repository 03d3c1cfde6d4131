"""Counts requests in when they are placed and out when they are over, and learns from them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cluster.conductor.columns import Floats
from cluster.conductor.deciding import Decision
from cluster.conductor.fairness import FairShare
from cluster.conductor.index import EXPECTED, PrefixIndex
from cluster.conductor.inflight import InFlight, InFlightTable
from cluster.conductor.journal import Rows
from cluster.conductor.learning import Learner
from cluster.conductor.ledger import Ledger
from cluster.conductor.members import MemberTable, Record
from cluster.conductor.types import Member, Outcome, Placement
from kvstore.core.ids import MemberId, RequestId

_TOLD_MAX = 8
"""Candidates in a placement."""


class Placements:
    """Of one conductor. `in_flight` is bounded: see there."""

    def __init__(self, members: MemberTable, index: PrefixIndex, learner: Learner) -> None:
        self._members = members
        self._index = index
        self._learner = learner
        self.in_flight = InFlightTable()
        self.ledger = Ledger(members)
        self.fair = FairShare()
        self.routed = 0

    def place(self, decision: Decision) -> Placement:
        """Count it in where it was decided to go."""
        placement = _placement(decision)
        placed = self._in_flight_of(decision, placement)
        self.routed += 1
        self._index.stored(placed.prefiller.slot, EXPECTED, placed.request.routing_keys)
        self.ledger.count_in(placed)
        self.fair.charge(placed.request.tenant, placed.computed_tokens, placed.answer_tokens)
        for given_up in self.in_flight.add(placed):
            self._count_out(given_up, placed.placed_s)
        return placement

    def complete(self, outcome: Outcome, now_s: float) -> bool:
        """False if it is not in flight."""
        placed = self.in_flight.pop(outcome.request_id)
        if placed is None:
            return False
        if self.ledger.is_there(placed.prefiller) and self.ledger.is_there(placed.decoder):
            self._learner.observe(placed, outcome, placed.decoder.past.at(now_s))
        else:
            self._learner.count(outcome)
        if outcome.output_tokens:
            surplus = outcome.output_tokens - placed.answer_tokens
            self.fair.charge(placed.request.tenant, 0.0, surplus)
        self._count_out(placed, now_s)
        return True

    def cancel(self, request_id: RequestId, now_s: float) -> bool:
        """Learn nothing. False if it is not in flight."""
        placed = self.in_flight.pop(request_id)
        if placed is not None:
            self._count_out(placed, now_s)
        return placed is not None

    def fail(self, request_id: RequestId, now_s: float) -> frozenset[MemberId]:
        """It is here again, so it has failed where it was. Returns all workers that it failed on:
        none if it is new."""
        earlier = self.in_flight.pop(request_id)
        if earlier is None:
            return frozenset()
        self._learner.count(Outcome(request_id, failed=True))
        self._count_out(earlier, now_s)
        return earlier.avoid | {
            earlier.prefiller.member.member_id,
            earlier.decoder.member.member_id,
        }

    def _in_flight_of(self, decision: Decision, placement: Placement) -> InFlight:
        prospects, choice = decision.prospects, decision.choice
        context, chosen = prospects.context, placement.chosen
        decoder = self._record(placement.decode)
        joins_s = context.now_s + chosen.ttft_s + placement.join_s
        request = context.request
        if request.bypass_cache:
            request = replace(request, routing_keys=())
        return InFlight(
            request=request,
            layout=context.layout,
            prefiller=self._record(chosen.member),
            decoder=decoder,
            predicted=chosen,
            itl_s=placement.itl_s,
            blocks=context.blocks_needed,
            tokens=context.tokens_held,
            answer_tokens=context.answer_tokens,
            placed_s=context.now_s,
            joins_s=joins_s,
            leaves_s=joins_s + placement.itl_s * context.answer_tokens,
            transfers=prospects.transfers(choice.prefill, choice.decode),
            before=decoder.past.at(context.now_s),
            avoid=decision.avoid,
        )

    def _count_out(self, placed: InFlight, now_s: float) -> None:
        """Two requests that share a prefix end its expectation with the first: by then the blocks
        are there, and told by events."""
        self.ledger.count_out(placed, now_s)
        if self.ledger.is_there(placed.prefiller):
            self._index.removed(placed.prefiller.slot, EXPECTED, placed.request.routing_keys)

    def _record(self, member: Member) -> Record:
        record = self._members.get(member.member_id)
        assert record is not None
        return record


def _placement(decision: Decision) -> Placement:
    prospects, choice = decision.prospects, decision.choice
    alone, decode = choice.prefill is None, prospects.decode
    workers = prospects.alone if alone else prospects.prefillers
    chosen = workers.candidate(choice.decode if choice.prefill is None else choice.prefill)
    return Placement(
        prefill=None if alone else chosen.member,
        decode=decode.members[choice.decode],
        chosen=chosen,
        itl_s=float(decode.itl_s[choice.decode]),
        join_s=prospects.join_s(choice.prefill, choice.decode),
        candidates=Rows(_soonest(workers.ttft_s), workers.candidate),
    )


def _soonest(ttft_s: Floats) -> list[int]:
    rows = np.arange(len(ttft_s))
    if len(rows) > _TOLD_MAX:
        rows = np.sort(np.argpartition(ttft_s, _TOLD_MAX)[:_TOLD_MAX])
    soonest: list[int] = rows.tolist()
    return soonest

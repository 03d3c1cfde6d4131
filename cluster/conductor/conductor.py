"""The global scheduler as a library: members and events in, placements out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

from cluster.conductor.candidates import Predictor
from cluster.conductor.feed import IndexFeed
from cluster.conductor.index import EXPECTED, Match, PrefixIndex
from cluster.conductor.inflight import InFlight, InFlightTable
from cluster.conductor.learning import Learner
from cluster.conductor.members import MemberTable, ModelView, Record
from cluster.conductor.policy import Choice, JointPlacement, Policy, RoundRobin
from cluster.conductor.types import (
    ConductorStatistics,
    Load,
    Member,
    MemberStatus,
    Outcome,
    Placement,
    Request,
)
from kvstore.core.errors import InvalidArgumentError, UnavailableError
from kvstore.core.ids import MemberId
from kvstore.core.layout import KVLayout
from kvstore.core.ports import Clock

_NO_MATCH = Match({}, 0)


def make_policy(name: Literal["joint", "round-robin"]) -> Policy:
    return JointPlacement() if name == "joint" else RoundRobin()


class Conductor:
    """Soft state only: all of it comes back when members register again and send their snapshots.

    Pure and single-threaded: no verb waits. Members are forgotten by `expire`, which the owner
    calls now and then.
    """

    def __init__(self, policy: Policy, clock: Clock, *, member_ttl_s: float = 5.0) -> None:
        self._policy = policy
        self._clock = clock
        self._member_ttl_s = member_ttl_s
        self._members = MemberTable(clock)
        self._index = PrefixIndex()
        self._in_flight = InFlightTable()
        self._learner = Learner()
        self._routed = 0

    def register(self, member: Member, epoch: int) -> IndexFeed | None:
        """Take in a member, or the same one after its restart: what it held before is forgotten.

        Returns where its block events go; None if it is registered already, just so.
        Raises IdentityMismatchError if workers of its model name would compute other KV,
        InvalidArgumentError if a larger epoch of it is registered.
        """
        known = self._members.get(member.member_id)
        if known is not None and known.is_just(member, epoch):
            self._members.heard(member.member_id, epoch, known.load)
            return None
        record = self._members.add(member, epoch)
        self._index.forget(record.slot)
        return IndexFeed(
            self._index, record.slot, lambda: self._members.get(member.member_id) is record
        )

    def heartbeat(self, member_id: MemberId, epoch: int, load: Load) -> None:
        """Raises SessionExpiredError for a member not registered in this epoch."""
        record = self._members.heard(member_id, epoch, load)
        if not (load.running or load.waiting):
            record.backlog.idle(self._clock())

    def drain(self, member_id: MemberId) -> None:
        """Send it nothing more, and count on none of its blocks. No error for one not known."""
        record = self._members.get(member_id)
        if record is not None:
            self._members.drain(record)
            self._index.forget(record.slot)

    def expire(self) -> list[MemberId]:
        """Forget members that were silent for too long; returns them."""
        silent = [r.member.member_id for r in self._members.silent(self._member_ttl_s)]
        for member_id in silent:
            self.forget(member_id)
        return silent

    def forget(self, member_id: MemberId) -> None:
        """As if it had never been. No error for a member not known."""
        record = self._members.get(member_id)
        if record is not None:
            self._index.forget(record.slot)
            self._members.remove(record)

    def route(self, request: Request) -> Placement:
        """Place a request, and count it in until it completes.

        One that is routed again before it completed has failed where it was: those workers are
        avoided if there are others.
        Raises InvalidArgumentError for a model that nobody serves or a malformed request,
        UnavailableError when no decode worker is there.
        """
        view = self._view_of(request)
        layout = _layout(view)
        _check(request, layout)
        avoid = self._fail_earlier(request)
        predictor = Predictor(
            request,
            layout,
            self._match(request, view),
            self._in_flight,
            self._clock(),
        )
        prefills = () if request.bypass_cache else _without(view.prefills, avoid)
        decodes = _without(view.decodes, avoid)
        candidates = [predictor.prefill(worker) for worker in prefills or decodes]
        choose = self._policy.choose if prefills else self._policy.choose_alone
        choice = choose(request, candidates, [predictor.decode(worker) for worker in decodes])
        chosen = choice.prefill or next(c for c in candidates if c.member is choice.decode.member)
        placement = Placement(
            prefill=choice.prefill.member if choice.prefill else None,
            decode=choice.decode.member,
            chosen=chosen,
            candidates=candidates,
        )
        self._count_in(request, placement, choice, predictor, avoid)
        return placement

    def complete(self, outcome: Outcome) -> bool:
        """Learn from how a request went. False if it is not known (any more)."""
        placed = self._in_flight.pop(outcome.request_id)
        if placed is None:
            return False
        self._unexpect(placed)
        self._learner.observe(placed, outcome)
        return True

    def members(self) -> list[MemberStatus]:
        now_s = self._clock()
        return [
            MemberStatus(
                member=record.member,
                load=record.load,
                draining=record.draining,
                silent_s=max(0.0, now_s - record.heard_s),
                indexed_blocks=self._index.blocks_of(record.slot),
            )
            for record in self._members
        ]

    def statistics(self) -> ConductorStatistics:
        return ConductorStatistics(
            members=len(self._members),
            indexed_blocks=len(self._index),
            in_flight=len(self._in_flight),
            routed=self._routed,
            completed=self._learner.completed,
            failed=self._learner.failed,
            ttft_error=self._learner.ttft_error,
        )

    def _view_of(self, request: Request) -> ModelView:
        view = self._members.view(request.model)
        if view.decodes:
            return view
        models = self._members.models()
        if models and request.model not in models:
            raise InvalidArgumentError(
                f"model {request.model!r} is not served here; served are: {', '.join(models)}"
            )
        raise UnavailableError(
            f"no decode worker for model {request.model!r} is registered; start one, or wait until"
            " it is"
        )

    def _match(self, request: Request, view: ModelView) -> Match:
        if request.bypass_cache:
            return _NO_MATCH
        return self._index.match(request.routing_keys, view.workers, view.workers_of)

    def _fail_earlier(self, request: Request) -> frozenset[MemberId]:
        earlier = self._in_flight.pop(request.request_id)
        if earlier is None:
            return frozenset()
        self._unexpect(earlier)
        self._learner.observe(earlier, Outcome(request.request_id, failed=True))
        return earlier.avoid | {
            earlier.prefiller.member.member_id,
            earlier.decoder.member.member_id,
        }

    def _count_in(
        self,
        request: Request,
        placement: Placement,
        choice: Choice,
        predictor: Predictor,
        avoid: frozenset[MemberId],
    ) -> None:
        prefiller = self._record(placement.chosen.member)
        if request.bypass_cache:
            request = replace(request, routing_keys=())
        placed = InFlight(
            request=request,
            layout=predictor.layout,
            prefiller=prefiller,
            decoder=self._record(placement.decode),
            predicted=placement.chosen,
            batch=choice.decode.batch,
            blocks=predictor.blocks_needed,
            placed_s=predictor.now_s,
            avoid=avoid,
        )
        self._routed += 1
        prefiller.routed += 1
        prefiller.backlog.add(predictor.now_s, placement.chosen.load_s + placement.chosen.prefill_s)
        self._index.stored(prefiller.slot, EXPECTED, request.routing_keys)
        for given_up in self._in_flight.add(placed):
            self._unexpect(given_up)

    def _unexpect(self, placed: InFlight) -> None:
        """Two requests that share a prefix end its expectation with the first: by then the blocks
        are there, and told by events."""
        worker = placed.prefiller
        if self._members.get(worker.member.member_id) is worker:
            self._index.removed(worker.slot, EXPECTED, placed.request.routing_keys)

    def _record(self, member: Member) -> Record:
        record = self._members.get(member.member_id)
        assert record is not None
        return record


def _layout(view: ModelView) -> KVLayout:
    model = view.decodes[0].member.model
    assert model is not None
    return model.layout


def _check(request: Request, layout: KVLayout) -> None:
    full_blocks = request.prompt_tokens // layout.block_size_tokens
    if request.prompt_tokens < 1:
        raise InvalidArgumentError("prompt_tokens must be at least 1")
    if len(request.routing_keys) > full_blocks:
        raise InvalidArgumentError(
            f"routing_keys: {len(request.routing_keys)} keys, but {request.prompt_tokens} tokens"
            f" have {full_blocks} full blocks of {layout.block_size_tokens}"
        )


def _without(workers: Iterable[Record], avoid: frozenset[MemberId]) -> tuple[Record, ...]:
    """All of them if there are no others."""
    workers = tuple(workers)
    others = tuple(worker for worker in workers if worker.member.member_id not in avoid)
    return others or workers

"""The global scheduler as a library: members and events in, placements out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from math import inf

from cluster.conductor.admission import Admission, AdmissionMode, Refusal
from cluster.conductor.deciding import Decider, Decision
from cluster.conductor.feed import IndexFeed
from cluster.conductor.index import PrefixIndex
from cluster.conductor.journal import Journal
from cluster.conductor.keeping import Keeper
from cluster.conductor.kept import KeptBlocks, KeptRun, KeptState
from cluster.conductor.learning import Learner
from cluster.conductor.members import MemberTable
from cluster.conductor.placing import Placements
from cluster.conductor.policies.base import Policy
from cluster.conductor.policies.registry import make_policy
from cluster.conductor.types import (
    NO_TARGETS,
    ConductorStatistics,
    Explanation,
    Load,
    Member,
    MemberStatus,
    Outcome,
    Placement,
    Request,
    Targets,
)
from cluster.conductor.waiting import QUEUE_LIMITS, Answer, QueueLimits, Waiting, WaitingRoom
from kvstore.core.errors import KVStoreError, OverloadedError
from kvstore.core.ids import MemberId, RequestId
from kvstore.core.ports import Clock

__all__ = ["Conductor", "make_policy"]


class Conductor:
    """Soft state only: all of it comes back when members register again and send their snapshots.

    Pure and single-threaded: no verb waits. `route` places a request or refuses it. `submit` may
    also let it wait; the owner then calls `dispatch` when something has changed (a report, an
    outcome, `QueueLimits.dispatch_every_s` without either), and hands out what it returns. Members
    are forgotten by `expire`, which the owner calls now and then.
    """

    def __init__(
        self,
        policy: Policy,
        clock: Clock,
        *,
        member_ttl_s: float = 5.0,
        admission: AdmissionMode = "predictive",
        targets: Targets = NO_TARGETS,
        queue: QueueLimits = QUEUE_LIMITS,
        across_zones: float = 4.0,
        explained_max: int = 128,
    ) -> None:
        """`targets`: of requests that name none; `across_zones`: how many times longer a transfer
        between zones takes than one inside; `explained_max`: so many of the last decisions can be
        explained."""
        self._clock = clock
        self._now_s = clock()
        self._member_ttl_s = member_ttl_s
        self._targets = targets
        self._queue = queue
        self._policy_name = type(policy).__name__
        self._members = MemberTable(self._now)
        self._index = PrefixIndex()
        self._learner = Learner()
        self._placements = Placements(self._members, self._index, self._learner)
        self._admission = Admission(admission, self._placements.ledger.schedule)
        self._decider = Decider(
            policy, self._admission, self._members, self._index, self._learner, across_zones
        )
        self._room = WaitingRoom(queue.requests_max, self._placements.fair)
        self._journal = Journal(explained_max)
        self._keeper = Keeper(self._members, self._index, self._learner, self._placements.fair)
        self._answers: list[Answer] = []
        """For those pushed out of the room since the last `dispatch`."""
        self._refused = 0

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
        return self._keeper.feed(record)

    def heartbeat(self, member_id: MemberId, epoch: int, load: Load) -> None:
        """Raises SessionExpiredError for a member not registered in this epoch."""
        self._members.heard(member_id, epoch, load)

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
        UnavailableError when no decode worker is there, OverloadedError if its targets cannot be
        met: it is not counted in then.
        """
        waiting = self._arrive(request)
        return self._take(self._decide(waiting))

    def submit(self, request: Request) -> Placement | Waiting:
        """As `route`, or let it wait: while the chosen worker has enough to do, while those that
        decode there have to become fewer, or while others wait whom it may not overtake.

        `dispatch` or `cancel` ends the waiting.
        """
        waiting = self._arrive(request)
        decision = self._decide(waiting)
        first = self._room.first()
        overtakes = first is None or first.request.priority < request.priority
        if self._queue.requests_max == 0 or (overtakes and not self._must_wait(decision)):
            return self._take(decision)
        if decision.refusal is not None and not decision.refusal.may_pass:
            raise self._refuse(decision, decision.refusal)
        pushed_out = self._room.add(waiting)
        if pushed_out is waiting:
            raise self._overloaded("the queue is full", decision.queue_s)
        if pushed_out is not None:
            error = self._overloaded("the queue is full of requests that go first", 1.0)
            self._answers.append(Answer(pushed_out.request.request_id, error))
        return waiting

    def dispatch(self) -> list[Answer]:
        """What became of those that waited: placed, or why not."""
        answers, self._answers = self._answers, []
        now_s = self._now()
        for late in self._room.overdue(now_s):
            waited_s = now_s - late.arrived_s
            error = self._overloaded(f"it waited for {waited_s:.3g} s", waited_s)
            answers.append(Answer(late.request.request_id, error))
        while (waiting := self._room.first()) is not None:
            answer = self._try(waiting)
            if answer is None:
                break
            self._room.remove(waiting.request.request_id)
            answers.append(answer)
        return answers

    def joined(self, request_id: RequestId) -> None:
        """Its prompt is computed, and it is about to decode. Telling is optional.

        In the mode `late` this is where OverloadedError is raised if its target for the time
        between tokens cannot be met; the request is forgotten then. No error for one not known.
        """
        placed = self._placements.in_flight.get(request_id)
        if placed is None:
            return
        self._placements.ledger.joined(placed, self._now())
        itl_s = self._placements.ledger.itl_s(placed)
        refusal = self._admission.judge_joining(itl_s, placed.request.targets.itl_s)
        if refusal is not None:
            self.cancel(request_id)
            self._refused += 1
            raise refusal.error()

    def complete(self, outcome: Outcome) -> bool:
        """Learn from how a request went. False if it is not known (any more)."""
        return self._placements.complete(outcome, self._now())

    def cancel(self, request_id: RequestId) -> bool:
        """Forget a request: nobody waits for it any more. False if it is not known."""
        if self._room.remove(request_id) is not None:
            return True
        return self._placements.cancel(request_id, self._now())

    def explain(self, request_id: RequestId) -> Explanation | None:
        """The terms of every worker for one of the last requests; None for one that is not among
        them."""
        return self._journal.explain(request_id)

    def members(self) -> list[MemberStatus]:
        now_s = self._now()
        return [
            MemberStatus(
                member=record.member,
                load=record.load,
                draining=record.draining,
                silent_s=max(0.0, now_s - record.heard_s),
                indexed_blocks=self._index.blocks_of(record.slot),
                ttft_error=record.ttft_error.mean,
                itl_error=record.itl_error.mean,
            )
            for record in self._members
        ]

    def statistics(self) -> ConductorStatistics:
        return ConductorStatistics(
            members=len(self._members),
            indexed_blocks=len(self._index),
            in_flight=len(self._placements.in_flight),
            waiting=len(self._room),
            routed=self._placements.routed,
            completed=self._learner.completed,
            failed=self._learner.failed,
            refused=self._refused,
            ttft_error=self._learner.ttft_error.mean,
            itl_error=self._learner.itl_error.mean,
            late_events=self._index.late_events,
            shed_blocks=self._index.shed_blocks,
        )

    def keep(self) -> KeptState:
        """What a conductor that is started in place of this one should know, but the blocks."""
        return self._keeper.state()

    def kept_runs(self) -> Iterator[list[KeptRun]]:
        """And the blocks, in slices: see `kept.kept_runs`."""
        return self._keeper.runs()

    def restore(
        self, state: KeptState, blocks: KeptBlocks, runs: Iterable[KeptRun]
    ) -> Mapping[MemberId, IndexFeed]:
        """Before anything else. See `Keeper.restore`."""
        return self._keeper.restore(state, blocks, runs)

    def _arrive(self, request: Request) -> Waiting:
        """Raises for what is wrong with it."""
        self._decider.check(request)
        request = self._with_targets(request)
        now_s = self._now()
        self._room.remove(request.request_id)
        avoid = self._placements.fail(request.request_id, now_s)
        patience_s = min(self._queue.wait_s, request.targets.ttft_s)
        return Waiting(request, now_s, now_s + patience_s, avoid)

    def _with_targets(self, request: Request) -> Request:
        if self._targets == NO_TARGETS:
            return request
        asked = request.targets
        targets = Targets(
            asked.ttft_s if asked.ttft_s < inf else self._targets.ttft_s,
            asked.itl_s if asked.itl_s < inf else self._targets.itl_s,
        )
        return replace(request, targets=targets)

    def _decide(self, waiting: Waiting) -> Decision:
        now_s = self._now()
        waited_s = now_s - waiting.arrived_s
        return self._decider.decide(waiting.request, now_s, waited_s=waited_s, avoid=waiting.avoid)

    def _must_wait(self, decision: Decision) -> bool:
        return decision.refusal is not None or decision.queue_s > self._queue.ahead_s

    def _try(self, waiting: Waiting) -> Answer | None:
        """None: it goes on waiting."""
        request_id = waiting.request.request_id
        try:
            decision = self._decide(waiting)
            hopeless = decision.refusal is not None and not decision.refusal.may_pass
            if self._must_wait(decision) and not hopeless:
                return None
            return Answer(request_id, self._take(decision))
        except KVStoreError as error:
            return Answer(request_id, error)

    def _take(self, decision: Decision) -> Placement:
        if decision.refusal is not None:
            raise self._refuse(decision, decision.refusal)
        self._journal.add(decision, self._policy_name)
        return self._placements.place(decision)

    def _refuse(self, decision: Decision, refusal: Refusal) -> OverloadedError:
        self._journal.add(decision, self._policy_name)
        self._refused += 1
        return refusal.error()

    def _overloaded(self, what: str, retry_after_s: float) -> OverloadedError:
        self._refused += 1
        return OverloadedError(
            f"the cluster is too busy: {what}; retry later", retry_after_s=max(0.1, retry_after_s)
        )

    def _now(self) -> float:
        """A clock that jumps back stands still until it has caught up."""
        self._now_s = max(self._now_s, self._clock())
        return self._now_s

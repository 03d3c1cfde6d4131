"""From a request to a decision: match, predict, choose, judge. Changes nothing but the policy."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.conductor.admission import Admission, Refusal
from cluster.conductor.context import Context
from cluster.conductor.index import Match, PrefixIndex
from cluster.conductor.learning import Learner
from cluster.conductor.members import MemberTable
from cluster.conductor.policies.base import Choice, Policy
from cluster.conductor.prospects import Prospects
from cluster.conductor.requests import check_request
from cluster.conductor.types import Request
from cluster.conductor.view import ModelView
from kvstore.core.errors import InvalidArgumentError, UnavailableError
from kvstore.core.ids import MemberId
from kvstore.core.layout import KVLayout

_NO_MATCH = Match((), 0)


@dataclass(frozen=True, slots=True)
class Decision:
    """What would be done with a request now."""

    prospects: Prospects
    choice: Choice
    refusal: Refusal | None
    """Which of its targets the choice would miss."""
    avoid: frozenset[MemberId]
    """Workers that it failed on before."""

    @property
    def queue_s(self) -> float:
        """How long it would wait at the worker that computes its prompt."""
        if self.choice.prefill is None:
            return float(self.prospects.alone.queue_s[self.choice.decode])
        return float(self.prospects.prefillers.queue_s[self.choice.prefill])


class Decider:
    def __init__(
        self,
        policy: Policy,
        admission: Admission,
        members: MemberTable,
        index: PrefixIndex,
        learner: Learner,
        across_zones: float,
    ) -> None:
        self._policy = policy
        self._admission = admission
        self._members = members
        self._index = index
        self._learner = learner
        self._across_zones = across_zones

    def check(self, request: Request) -> None:
        """Raises InvalidArgumentError for a model that nobody serves or a malformed request,
        UnavailableError when no decode worker is there."""
        check_request(request, _layout(self._view_of(request)))

    def decide(
        self, request: Request, now_s: float, *, waited_s: float, avoid: frozenset[MemberId]
    ) -> Decision:
        """`waited_s`: of its time to first token so much is over. Raises as `check` does for what
        depends on who is there."""
        view = self._view_of(request)
        prospects = self._prospects(request, view.without(avoid) if avoid else view, now_s)
        choice = self._policy.choose(prospects)
        refusal = self._admission.judge(prospects, choice, waited_s)
        return Decision(prospects, choice, refusal, avoid)

    def _prospects(self, request: Request, view: ModelView, now_s: float) -> Prospects:
        match = _NO_MATCH
        if not request.bypass_cache:
            match = self._index.match(request.routing_keys, view.candidates, view.workers_of)
        context = Context(
            request=request,
            layout=_layout(view),
            now_s=now_s,
            answer_tokens=self._learner.answer_tokens(request.model, request.max_tokens),
            across_zones=self._across_zones,
        )
        return Prospects(context, view, match, self._members.columns.values)

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


def _layout(view: ModelView) -> KVLayout:
    model = view.decodes[0].model
    assert model is not None
    return model.layout

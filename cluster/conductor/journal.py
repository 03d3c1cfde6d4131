"""The last decisions, each with all that it was made from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar, overload

from cluster.conductor.deciding import Decision
from cluster.conductor.policies.base import Choice
from cluster.conductor.prospects import Prospects
from cluster.conductor.types import Explanation
from kvstore.core.ids import MemberId, RequestId

T = TypeVar("T")


class Rows(Sequence[T], Generic[T]):
    """One value for each row of some columns, made when it is asked for."""

    def __init__(self, rows: Sequence[int], make: Callable[[int], T]) -> None:
        self._rows = rows
        self._make = make

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, row: int) -> T: ...

    @overload
    def __getitem__(self, row: slice) -> Sequence[T]: ...

    def __getitem__(self, row: int | slice) -> T | Sequence[T]:
        if isinstance(row, slice):
            return [self._make(one) for one in self._rows[row]]
        return self._make(self._rows[row])


class Journal:
    """Bounded: the oldest goes. One entry takes about 300 bytes a worker."""

    def __init__(self, decisions_max: int) -> None:
        self._decisions_max = decisions_max
        self._decisions: dict[RequestId, tuple[Decision, str]] = {}

    def add(self, decision: Decision, policy: str) -> None:
        request_id = decision.prospects.request.request_id
        self._decisions.pop(request_id, None)
        self._decisions[request_id] = decision, policy
        if len(self._decisions) > self._decisions_max:
            del self._decisions[next(iter(self._decisions))]

    def explain(self, request_id: RequestId) -> Explanation | None:
        """The last decision on this request; None if it is not there any more, or never was."""
        if request_id not in self._decisions:
            return None
        decision, policy = self._decisions[request_id]
        prospects, choice = decision.prospects, decision.choice
        prefill, alone, decode = prospects.prefill, prospects.alone, prospects.decode
        return Explanation(
            request=prospects.request,
            decided_s=prospects.context.now_s,
            policy=policy,
            prefills=Rows(range(len(prefill)), prefill.candidate) if prefill else (),
            alone=Rows(range(len(alone)), alone.candidate),
            decodes=Rows(range(len(decode)), decode.candidate),
            prefill=_chosen(prospects, choice),
            decode=decode.members[choice.decode].member_id,
            refused=str(decision.refusal or ""),
        )


def _chosen(prospects: Prospects, choice: Choice) -> MemberId | None:
    if choice.prefill is None:
        return None
    return prospects.prefillers.members[choice.prefill].member_id

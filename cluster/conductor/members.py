"""Who is there: members with their epoch, load and time of last word. Pure; the clock is given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from cluster.conductor.cost import CostModel, WorkerCost
from cluster.conductor.index import Slot
from cluster.conductor.queue import Backlog
from cluster.conductor.types import Load, Member, Role
from kvstore.core.errors import (
    IdentityMismatchError,
    InvalidArgumentError,
    SessionExpiredError,
)
from kvstore.core.ids import MemberId
from kvstore.core.ports import Clock


@dataclass(slots=True)
class Record:
    """One member as the conductor keeps it."""

    slot: Slot
    member: Member
    epoch: int
    heard_s: float
    cost: WorkerCost
    backlog: Backlog
    load: Load
    draining: bool = False
    routed: int = 0
    """Requests that it was given to prefill."""

    def is_just(self, member: Member, epoch: int) -> bool:
        """Whether registering so would change nothing."""
        return not self.draining and (self.member, self.epoch) == (member, epoch)


@dataclass(frozen=True, slots=True)
class ModelView:
    """The workers of one model that take requests, in order of member id."""

    prefills: tuple[Record, ...]
    decodes: tuple[Record, ...]
    workers: int
    """Bit set of both."""
    workers_of: Mapping[Slot, int]
    """For each node that has any of them: their bit set."""


class MemberTable:
    """Members by id, with a small integer (slot) each; slots of those gone are used again."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._records: dict[MemberId, Record] = {}
        self._free_slots: list[Slot] = []
        self._fleets: dict[str, CostModel] = {}
        self._views: dict[str, ModelView] = {}

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records.values())

    def get(self, member_id: MemberId) -> Record | None:
        return self._records.get(member_id)

    def add(self, member: Member, epoch: int) -> Record:
        """Raises IdentityMismatchError, or InvalidArgumentError for an epoch that is over."""
        known = self._records.get(member.member_id)
        if known is not None and epoch < known.epoch:
            raise InvalidArgumentError(
                f"member {member.member_id!r}: epoch {epoch} is older than {known.epoch}, which"
                " is registered; give each member its own id and each start a larger epoch"
            )
        self._check_identity(member)
        record = Record(
            slot=known.slot if known is not None else self._new_slot(),
            member=member,
            epoch=epoch,
            heard_s=self._clock(),
            cost=self._cost(member, known),
            backlog=Backlog(),
            load=Load(),
        )
        self._records[member.member_id] = record
        self._views.clear()
        return record

    def heard(self, member_id: MemberId, epoch: int, load: Load) -> Record:
        """Raises SessionExpiredError for a member that is not known in this epoch."""
        record = self._records.get(member_id)
        if record is None or record.epoch != epoch:
            raise SessionExpiredError(f"member {member_id!r} is not registered; register again")
        record.heard_s = self._clock()
        record.load = load
        return record

    def remove(self, record: Record) -> None:
        del self._records[record.member.member_id]
        self._free_slots.append(record.slot)
        self._views.clear()
        name = _model_name(record.member)
        if not any(_model_name(other.member) == name for other in self):
            self._fleets.pop(name, None)

    def silent(self, ttl_s: float) -> list[Record]:
        """Members not heard of for longer than `ttl_s`."""
        oldest_s = self._clock() - ttl_s
        return [record for record in self if record.heard_s < oldest_s]

    def drain(self, record: Record) -> None:
        record.draining = True
        self._views.clear()

    def models(self) -> list[str]:
        return sorted({record.member.model.name for record in self if record.member.model})

    def view(self, model: str) -> ModelView:
        """Kept until somebody comes, goes or drains."""
        view = self._views.get(model)
        if view is None:
            view = self._views[model] = self._view(model)
        return view

    def _view(self, model: str) -> ModelView:
        workers = sorted(
            (r for r in self if not r.draining and r.member.model and r.member.model.name == model),
            key=lambda record: record.member.member_id,
        )
        nodes = {
            record.member.node_id: record.slot
            for record in self
            if record.member.role is Role.NODE and not record.draining
        }
        workers_of: dict[Slot, int] = {}
        for worker in workers:
            node = nodes.get(worker.member.node_id)
            if node is not None:
                workers_of[node] = workers_of.get(node, 0) | 1 << worker.slot
        return ModelView(
            prefills=tuple(r for r in workers if r.member.role is Role.PREFILL),
            decodes=tuple(r for r in workers if r.member.role is Role.DECODE),
            workers=sum(1 << worker.slot for worker in workers),
            workers_of=workers_of,
        )

    def _check_identity(self, member: Member) -> None:
        model = member.model
        if model is None:
            return
        for record in self:
            other = record.member.model
            if other is None or other.name != model.name:
                continue
            if record.member.member_id == member.member_id:
                continue
            if other.identity_root != model.identity_root or other.layout != model.layout:
                raise IdentityMismatchError(
                    f"worker {member.member_id!r} would not compute the same KV for model"
                    f" {model.name!r} as {record.member.member_id!r} does; give both the same"
                    " weights, dtype and block size, or another served_model_name"
                )

    def _new_slot(self) -> Slot:
        if self._free_slots:
            return self._free_slots.pop()
        return len(self._records)

    def _cost(self, member: Member, known: Record | None) -> WorkerCost:
        name = _model_name(member)
        if known is not None and _model_name(known.member) == name:
            return known.cost
        return WorkerCost(self._fleets.setdefault(name, CostModel()))


def _model_name(member: Member) -> str:
    return member.model.name if member.model is not None else ""

"""Who is there: members with their epoch, load and time of last word. Pure; the clock is given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from cluster.conductor.columns import Columns, Field
from cluster.conductor.cost import FleetCost, Kind, PrefillWork
from cluster.conductor.index import Slot
from cluster.conductor.past import Past
from cluster.conductor.prediction_error import PredictionError
from cluster.conductor.types import Load, Member, Role
from cluster.conductor.view import ModelView
from kvstore.core.errors import (
    IdentityMismatchError,
    InvalidArgumentError,
    SessionExpiredError,
)
from kvstore.core.ids import MemberId
from kvstore.core.ports import Clock
from kvstore.core.regression import LinearState


@dataclass(slots=True, eq=False)
class Record:
    """One member as the conductor keeps it; numbers that predictions need are in the columns."""

    slot: Slot
    member: Member
    epoch: int
    heard_s: float
    cost: FleetCost
    """Of its model."""
    load: Load
    draining: bool = False
    ttft_error: PredictionError = field(default_factory=PredictionError)
    itl_error: PredictionError = field(default_factory=PredictionError)
    past: Past = field(default_factory=Past)

    def is_just(self, member: Member, epoch: int) -> bool:
        """Whether registering so would change nothing."""
        return not self.draining and (self.member, self.epoch) == (member, epoch)


class MemberTable:
    """Members by id, with a small integer (slot) each; slots of those gone are used again."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._records: dict[MemberId, Record] = {}
        self._free_slots: list[Slot] = []
        self._fleets: dict[str, FleetCost] = {}
        self.columns = Columns()
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
        if known is not None and _model_name(known.member) != _model_name(member):
            self.remove(known)
            known = None
        slot = known.slot if known is not None else self._new_slot()
        self.columns.clear(slot)
        fleet = self._fleets.setdefault(_model_name(member), FleetCost(self.columns))
        fleet.add(slot)
        record = Record(slot, member, epoch, self._clock(), fleet, Load())
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
        self._report(record)
        return record

    def remove(self, record: Record) -> None:
        del self._records[record.member.member_id]
        self._free_slots.append(record.slot)
        self._views.clear()
        record.cost.remove(record.slot)
        self.columns.clear(record.slot)
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

    def learned(self) -> Mapping[str, Mapping[Kind, LinearState]]:
        """Of the workers of each model together."""
        return {name: fleet.learned() for name, fleet in self._fleets.items()}

    def restore(self, learned: Mapping[str, Mapping[Kind, LinearState]]) -> None:
        """Of models that have workers here. Raises InvalidArgumentError for what is no state."""
        for name, states in learned.items():
            if name in self._fleets:
                self._fleets[name].restore(states)

    def _view(self, model: str) -> ModelView:
        active = [record for record in self if not record.draining]
        workers = [
            (record.slot, record.member)
            for record in active
            if record.member.model and record.member.model.name == model
        ]
        nodes = {r.member.node_id: r.slot for r in active if r.member.role is Role.NODE}
        return ModelView(workers, nodes)

    def _report(self, record: Record) -> None:
        """Into the columns. Its waiting prompts are taken to be of equal length, and uncached."""
        load, slot = record.load, record.slot
        prompts = max(1, load.waiting)
        each = load.waiting_tokens // prompts
        work_s = prompts * record.cost.predict(slot, PrefillWork(each, each)) if each else 0.0
        self.columns.report(slot, record.heard_s, load.running + load.waiting, work_s)
        if load.total_blocks:
            self.columns.values[Field.FREE_BLOCKS, slot] = load.free_blocks
            self.columns.values[Field.TOTAL_BLOCKS, slot] = load.total_blocks

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


def _model_name(member: Member) -> str:
    return member.model.name if member.model is not None else ""

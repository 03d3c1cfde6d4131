"""Counts placed requests in and out of the columns of the workers that they are on."""

from __future__ import annotations

from math import isfinite

from cluster.conductor.columns import Field
from cluster.conductor.cost import DecodeWork
from cluster.conductor.forecast import Schedule
from cluster.conductor.inflight import InFlight
from cluster.conductor.members import MemberTable, Record
from kvstore.core.ids import RequestId


class Ledger:
    """A request is counted in once, and out once; not out of workers that restarted meanwhile."""

    def __init__(self, members: MemberTable) -> None:
        self._members = members
        self._columns = members.columns
        self.schedule = Schedule()
        self._places: dict[RequestId, int] = {}

    def itl_s(self, placed: InFlight) -> float:
        """Between tokens at its decode worker, with all that is there."""
        past = placed.decoder.past
        work = DecodeWork(past.sequences, past.tokens)
        return placed.decoder.cost.predict(placed.decoder.slot, work)

    def count_in(self, placed: InFlight) -> None:
        placed.prefiller.past.work_s += placed.predicted.ready_s
        self._columns.give(placed.prefiller.slot, placed.placed_s, placed.predicted.ready_s)
        for link in placed.transfers:
            self._columns.transfer(link.slot, placed.placed_s, link.seconds)
        self._count(placed, 1)
        self._places[placed.request.request_id] = self.schedule.add(
            placed.decoder.slot, placed.joins_s, placed.leaves_s, placed.tokens
        )

    def joined(self, placed: InFlight, now_s: float) -> None:
        """It has begun to decode."""
        self.schedule.joined(self._places[placed.request.request_id], now_s)

    def count_out(self, placed: InFlight, now_s: float) -> None:
        self.schedule.remove(self._places.pop(placed.request.request_id))
        if self.is_there(placed.decoder):
            placed.decoder.past.advance(now_s)
            self._count(placed, -1)

    def is_there(self, record: Record) -> bool:
        """Whether this is still the member that it was."""
        return self._members.get(record.member.member_id) is record

    def _count(self, placed: InFlight, sign: int) -> None:
        values, slot = self._columns.values, placed.decoder.slot
        placed.decoder.past.count(sign, sign * placed.tokens)
        values[Field.SEQUENCES, slot] += sign
        values[Field.PROMISED_BLOCKS, slot] += sign * placed.blocks
        values[Field.TOKENS, slot] += sign * placed.tokens
        target_s = placed.request.targets.itl_s
        if isfinite(target_s):
            values[Field.TARGETED, slot] += sign
            values[Field.TIGHTNESS, slot] += sign / target_s

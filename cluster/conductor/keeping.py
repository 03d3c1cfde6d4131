"""What a conductor should still know after a restart: taken out, and put into a new one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from cluster.conductor.fairness import FairShare
from cluster.conductor.feed import IndexFeed
from cluster.conductor.index import PrefixIndex, Slot
from cluster.conductor.kept import (
    KeptBlocks,
    KeptMember,
    KeptRun,
    KeptState,
    kept_runs,
    restore_run,
)
from cluster.conductor.learning import Learner
from cluster.conductor.members import MemberTable, Record
from kvstore.core.ids import MemberId


class Keeper:
    """Of one conductor. Requests in flight are not kept: their gateways know of them."""

    def __init__(
        self, members: MemberTable, index: PrefixIndex, learner: Learner, fair: FairShare
    ) -> None:
        self._members = members
        self._index = index
        self._learner = learner
        self._fair = fair

    def state(self) -> KeptState:
        return KeptState(
            members=[_kept(record) for record in self._members],
            fleets=self._members.learned(),
            answer_tokens=self._learner.answer_lengths(),
            charged=self._fair.all_charged(),
        )

    def runs(self) -> Iterator[list[KeptRun]]:
        """See `kept_runs`."""
        return kept_runs(self._index)

    def restore(
        self, state: KeptState, blocks: KeptBlocks, runs: Iterable[KeptRun]
    ) -> Mapping[MemberId, IndexFeed]:
        """Into a conductor that nothing was told yet; members count as heard of now.

        Returns where the events of each member go. Raises InvalidArgumentError for what cannot be;
        the conductor is of no use then.
        """
        assert not len(self._members), "restored into one that is in use"
        records = {kept.member.member_id: self._add(kept) for kept in state.members}
        self._members.restore(state.fleets)
        for kept in state.members:
            record = records[kept.member.member_id]
            record.cost.restore_of(record.slot, kept.learned)
            self._members.heard(kept.member.member_id, kept.epoch, kept.load)
        self._learner.restore(state.answer_tokens)
        self._fair.restore(state.charged)
        slots: Mapping[Slot, Slot] = {
            kept.slot: records[kept.member.member_id].slot
            for kept in state.members
            if kept.member.member_id in blocks
        }
        for run in runs:
            restore_run(self._index, run, slots)
        return {member_id: self.feed(record, blocks) for member_id, record in records.items()}

    def feed(self, record: Record, blocks: KeptBlocks | None = None) -> IndexFeed:
        """Of a member from now on, for as long as it is this one."""
        member_id = record.member.member_id
        return IndexFeed(
            self._index,
            record.slot,
            lambda: self._members.get(member_id) is record,
            (blocks or {}).get(member_id),
        )

    def _add(self, kept: KeptMember) -> Record:
        record = self._members.add(kept.member, kept.epoch)
        if kept.draining:
            self._members.drain(record)
        return record


def _kept(record: Record) -> KeptMember:
    return KeptMember(
        slot=record.slot,
        member=record.member,
        epoch=record.epoch,
        load=record.load,
        draining=record.draining,
        learned=record.cost.learned_of(record.slot),
    )

"""One serving instance: chunked prefill and continuous batching, step by step.

A step computes prompt tokens within a budget and makes one token for every sequence that decodes.
Steps without prompt tokens are planned many at a time, and the plan is cut where something comes:

    │ mixed step │ run: 1 2 3 4 5 ┊6 7 8 ... planned until a sequence ends
                                ▲
                                a request arrives during step 5; step 6 takes it up
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from cluster.conductor.types import Load
from cluster.simulator.decoding import DecodeBatch, Run
from cluster.simulator.device import Device
from cluster.simulator.events import Timeline
from cluster.simulator.links import Link
from cluster.simulator.profiles import Profile
from cluster.simulator.scheduling import Chunk, Scheduler
from cluster.simulator.sequence import SimSequence
from cluster.simulator.stores import NodeStore
from kvstore.core.ids import MemberId
from kvstore.tiers.device.pool import PoolEvents


class Owner(Protocol):
    """What an instance tells the simulation, and asks of it."""

    def prefilled(self, instance: Instance, sequence: SimSequence) -> None:
        """It `hands_over`, its prompt is computed and its next token made."""

    def joins(self, sequence: SimSequence) -> bool:
        """Its prompt is computed and it would decode here now; False if it is refused."""

    def finished(self, instance: Instance, sequence: SimSequence) -> None:
        """Its last token is made."""

    def impossible(self, instance: Instance, sequence: SimSequence) -> None:
        """It is larger than the device tier."""

    def load(self, instance: Instance, sequence: SimSequence) -> bool:
        """See `Surroundings.load`; ends with `Instance.loaded`."""

    def take_over(self, instance: Instance, sequence: SimSequence, found_blocks: int) -> None:
        """See `Surroundings.take_over`; ends with `Instance.landed`, perhaps at once."""

    def device_changed(self, instance: Instance, events: PoolEvents) -> None: ...


class Instance:
    """Owned by one simulation. Every verb is called at the present of the timeline."""

    def __init__(
        self,
        member_id: MemberId,
        profile: Profile,
        node: NodeStore,
        timeline: Timeline,
        owner: Owner,
        *,
        decodes: bool,
    ) -> None:
        self.member_id = member_id
        self.node = node
        self.bus = Link(profile.host_load_bytes_per_s)
        self.decodes = decodes
        self.alive = True
        self.prefill_tokens = 0
        """Computed since the start."""
        self._profile = profile
        self._timeline = timeline
        self._owner = owner
        self._plans = 0
        self._clear()

    def _clear(self) -> None:
        self.device = Device(self._profile)
        self._batch = DecodeBatch(self._profile, self.device, in_no_time=not self.decodes)
        self._scheduler = Scheduler(self._profile, self.device, self._batch, self)
        self._chunks: list[Chunk] = []
        self._run: Run | None = None
        self._stepping = False
        self._plans += 1

    @property
    def growth_blocks(self) -> int:
        """Not to be taken: the sequences that decode need them in the next step."""
        return self._batch.blocks_for_next_step()

    # Verbs of the simulation

    def add(self, sequence: SimSequence) -> None:
        """Prefill it, and decode it too unless it `hands_over`."""
        self._settle()
        self.node.touch(sequence.blocks)
        self._scheduler.add(sequence)
        self._wake()

    def expect(self, sequence: SimSequence) -> None:
        """Another instance has prefilled it and holds its blocks: move them here, and decode."""
        self._settle()
        self._scheduler.expect(sequence)
        self._wake()

    def loaded(self, sequence: SimSequence) -> None:
        if self._scheduler.is_away(sequence):
            self._scheduler.loaded(sequence)
            self._wake()

    def landed(self, sequence: SimSequence) -> None:
        if self._scheduler.is_away(sequence):
            self._scheduler.landed(sequence)
            self._wake()

    def release(self, table: list[int]) -> None:
        """Blocks that were only held for another instance to fetch."""
        self._settle()
        self.device.pool.release(table)
        if self._scheduler.blocked:
            self._wake()

    def die(self) -> list[SimSequence]:
        """Lose everything. Returns the sequences that were here; the owner hears of none of them
        again."""
        self._settle()
        lost = self._scheduler.everyone()
        for sequence in self._batch.members:
            self._batch.leave(sequence)
        for sequence in lost:
            if sequence.hands_over:
                sequence.generated = sequence.resumed
        self.alive = False
        self._clear()
        return lost

    def revive(self) -> None:
        self.alive = self.node.alive = True

    def abandon(self, sequence: SimSequence) -> None:
        """It was to come from an instance that died: give back what is reserved for it."""
        self._settle()
        self._scheduler.abandon(sequence)

    def load_now(self) -> Load:
        self._settle()
        return self._scheduler.load()

    # What the scheduler asks

    def load(self, sequence: SimSequence) -> bool:
        return self._owner.load(self, sequence)

    def take_over(self, sequence: SimSequence, found_blocks: int) -> None:
        self._owner.take_over(self, sequence, found_blocks)

    def impossible(self, sequence: SimSequence) -> None:
        self._owner.impossible(self, sequence)

    # Steps

    def _wake(self) -> None:
        """There is something new for the next step, which begins as soon as it can."""
        if not self._stepping:
            self._begin()
        elif self._run is not None:
            over = self._steps_over(self._run)
            if over + 1 < self._run.length:
                self._run.length = over + 1
                self._end_at(float(self._run.ends_s[over]))

    def _settle(self) -> None:
        """Account for the steps of the run that are over by now."""
        if self._run is not None:
            over = self._steps_over(self._run)
            self._batch.advance(self._run, over, under_way=over < self._run.length)

    def _steps_over(self, run: Run) -> int:
        return int(np.searchsorted(run.ends_s[: run.length], self._timeline.now_s, "right"))

    def _end_at(self, time_s: float) -> None:
        self._plans += 1
        plan = self._plans
        self._timeline.at(time_s, lambda: self._end(plan))

    def _begin(self) -> None:
        """A step or a run of them from now on, or none if there is nothing to do."""
        self._stepping = True
        now_s = self._timeline.now_s
        joined = self._scheduler.receive()
        self._chunks = self._scheduler.schedule()
        if self._chunks:
            end_s = first_end_s = now_s + self._begin_mixed()
        elif len(self._batch):
            self._run = self._batch.plan(now_s)
            first_end_s, end_s = float(self._run.ends_s[0]), float(self._run.ends_s[-1])
        else:
            self._stepping = False
        self._owner.device_changed(self, self.device.drain_events())
        if self._stepping:
            for sequence in joined:
                sequence.record.see_first_token(first_end_s)
            self._end_at(end_s)

    def _begin_mixed(self) -> float:
        """Seconds that the step takes."""
        self._batch.begin_step()
        tokens = sum(chunk.tokens for chunk in self._chunks)
        self.prefill_tokens += tokens
        duration_s = self._profile.prefill_s(tokens, sum(chunk.pairs for chunk in self._chunks))
        duration_s += self._batch.step_s(sum(chunk.completes for chunk in self._chunks))
        for chunk in self._chunks:
            if chunk.sequence.record.first_token_s is None:
                chunk.sequence.record.compute_s += duration_s
                if not chunk.sequence.started:
                    chunk.sequence.note_start(self._timeline.now_s)
        return duration_s

    def _end(self, plan: int) -> None:
        if plan != self._plans:
            return
        if self._run is not None:
            self._settle()
            self._run = None
        else:
            self._batch.end_step()
            self._end_chunks()
        for sequence in self._batch.ended():
            self._finish(sequence)
        self._begin()

    def _end_chunks(self) -> None:
        chunks, self._chunks = self._chunks, []
        for chunk in chunks:
            completed = self._scheduler.done(chunk)
            size = self._profile.block_size_tokens
            first, last = chunk.first // size, (chunk.first + chunk.tokens) // size
            self.node.put(chunk.sequence.blocks[first:last])
            if completed:
                self._next_token(chunk.sequence)

    def _next_token(self, sequence: SimSequence) -> None:
        """The step that completed its KV has made it, too."""
        if sequence.hands_over and not self._profile.prefill_makes_all_tokens:
            self._owner.prefilled(self, sequence)
            return
        if self.decodes and not self._owner.joins(sequence):
            self.device.release(sequence)
            return
        sequence.generated += 1
        if self.decodes:
            sequence.record.see_first_token(self._timeline.now_s)
        if sequence.tokens_left:
            self._batch.join(sequence)
        else:
            self._finish(sequence)

    def _finish(self, sequence: SimSequence) -> None:
        if sequence.hands_over:
            sequence.generated = sequence.resumed
            self._owner.prefilled(self, sequence)
            return
        self.device.name_output(sequence)
        self.device.release(sequence)
        self._owner.finished(self, sequence)

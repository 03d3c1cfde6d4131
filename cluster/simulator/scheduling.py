"""Who takes part in the next step of an instance, and with how many prompt tokens."""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass
from operator import attrgetter
from typing import Protocol

from cluster.conductor.types import Load
from cluster.simulator.decoding import DecodeBatch
from cluster.simulator.device import Device
from cluster.simulator.profiles import Profile
from cluster.simulator.sequence import SimSequence


class Surroundings(Protocol):
    """What is beyond the device tier, as the scheduler needs it."""

    def load(self, sequence: SimSequence) -> bool:
        """Begin to load what other tiers have of it, if that is worth it and there is room for all
        of it: then it is away until `Scheduler.loaded`, and has that room."""

    def take_over(self, sequence: SimSequence, found_blocks: int) -> None:
        """Begin to move its blocks here, but for the leading ones that were found here: it is away
        until `Scheduler.landed`."""

    def impossible(self, sequence: SimSequence) -> None:
        """It would not fit if it were alone."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens [first, first + tokens) of a sequence."""

    sequence: SimSequence
    first: int
    tokens: int

    @property
    def pairs(self) -> float:
        return self.tokens * (self.first + self.tokens / 2)

    @property
    def completes(self) -> bool:
        return self.first + self.tokens == self.sequence.known_tokens


class Scheduler:
    """First come, first served; what runs goes on before anything is admitted, and is preempted,
    the latest first, where memory does not suffice.

    Sequences go waiting → (loading →) waiting → prefilling → decoding; those that another instance
    prefilled go arriving → moving → landed → decoding. Not thread-safe; no time passes here.
    """

    def __init__(
        self, profile: Profile, device: Device, batch: DecodeBatch, around: Surroundings
    ) -> None:
        self._profile = profile
        self._device = device
        self._batch = batch
        self._around = around
        self._admitted = 0
        self.waiting: list[SimSequence] = []
        self.prefilling: list[SimSequence] = []
        self._loading: dict[SimSequence, None] = {}
        self._arriving: list[SimSequence] = []
        self._moving: dict[SimSequence, None] = {}
        self._landed: list[SimSequence] = []

    def add(self, sequence: SimSequence) -> None:
        """To prefill."""
        self._take_order(sequence)
        if self._around.load(sequence):
            self._loading[sequence] = None
        else:
            self._wait(sequence)

    def expect(self, sequence: SimSequence) -> None:
        """Prefilled elsewhere, and held there."""
        self._take_order(sequence)
        sequence.hands_over = False
        self._arriving.append(sequence)

    def loaded(self, sequence: SimSequence) -> None:
        del self._loading[sequence]
        self._wait(sequence)

    def landed(self, sequence: SimSequence) -> None:
        del self._moving[sequence]
        self._landed.append(sequence)

    def abandon(self, sequence: SimSequence) -> None:
        """One that is arriving or moving does not come. No error for another one."""
        if sequence in self._arriving:
            self._arriving.remove(sequence)
        elif sequence in self._moving:
            del self._moving[sequence]
            self._device.release(sequence)

    def is_away(self, sequence: SimSequence) -> bool:
        return sequence in self._loading or sequence in self._moving

    @property
    def blocked(self) -> bool:
        """Whether somebody may be waiting for memory."""
        return bool(self.waiting or self._arriving)

    def everyone(self) -> list[SimSequence]:
        return [
            *self.waiting,
            *self._loading,
            *self.prefilling,
            *self._batch.members,
            *self._arriving,
            *self._moving,
            *self._landed,
        ]

    def load(self) -> Load:
        to_prefill = [*self.waiting, *self._loading, *self.prefilling]
        return Load(
            running=len(self.prefilling) + len(self._batch) + len(self._landed),
            waiting=len(self.waiting) + len(self._loading) + len(self._arriving),
            waiting_tokens=sum(sequence.uncomputed for sequence in to_prefill),
            free_blocks=self._device.pool.num_free,
            total_blocks=self._device.pool.num_blocks,
        )

    def receive(self) -> list[SimSequence]:
        """Reserve blocks for those prefilled elsewhere; returns those that decode from now on."""
        while self._arriving and self._reserve(self._arriving[0]):
            pass
        landed, self._landed = self._landed, []
        for sequence in landed:
            self._device.name(sequence, 0, sequence.request.prompt_tokens)
            self._batch.join(sequence)
        return landed

    def schedule(self) -> list[Chunk]:
        """Prompt tokens of the next step. There is room for the sequences that decode in it."""
        while self._batch.blocks_for_next_step() > self._device.pool.num_free:
            self._preempt()
        chunks: list[Chunk] = []
        budget = self._profile.max_batch_tokens - len(self._batch)
        for sequence in list(self.prefilling):
            if budget > 0 and self._continue(sequence, budget):
                chunks.append(self._compute(sequence, budget))
                budget -= chunks[-1].tokens
        while budget > 0 and (admitted := self._admit()) is not None:
            fits = self._lengthen(admitted, budget)
            assert fits, "admitted without room"
            chunks.append(self._compute(admitted, budget))
            budget -= chunks[-1].tokens
        running = {id(sequence) for sequence in self.prefilling}
        return [chunk for chunk in chunks if id(chunk.sequence) in running]

    def done(self, chunk: Chunk) -> bool:
        """Its step is over; True if that was the last one, and the sequence has left."""
        chunk.sequence.computed = chunk.first + chunk.tokens
        if chunk.completes:
            self.prefilling.remove(chunk.sequence)
        return chunk.completes

    def _take_order(self, sequence: SimSequence) -> None:
        self._admitted += 1
        sequence.order = self._admitted

    def _reserve(self, sequence: SimSequence) -> bool:
        """False if it has to wait."""
        pool = self._device.pool
        if self._device.blocks_for(sequence.known_tokens) > pool.num_blocks:
            self._arriving.pop(0)
            self._around.impossible(sequence)
            return True
        self._device.match(sequence)
        matched, spare = len(sequence.table), self._batch.blocks_for_next_step()
        if not self._device.lengthen(sequence, sequence.known_tokens, spare_blocks=spare):
            self._device.release(sequence)
            return False
        self._arriving.pop(0)
        self._moving[sequence] = None
        self._around.take_over(sequence, matched)
        return True

    def _compute(self, sequence: SimSequence, budget: int) -> Chunk:
        chunk = Chunk(sequence, sequence.computed, min(sequence.uncomputed, budget))
        self._device.name(sequence, chunk.first, chunk.first + chunk.tokens)
        return chunk

    def _continue(self, sequence: SimSequence, budget: int) -> bool:
        """Take blocks for its next tokens; False if it was preempted itself."""
        while sequence in self.prefilling:
            if self._lengthen(sequence, budget):
                return True
            self._preempt()
        return False

    def _lengthen(self, sequence: SimSequence, budget: int) -> bool:
        tokens = sequence.computed + min(sequence.uncomputed, budget)
        spare = self._batch.blocks_for_next_step()
        return self._device.lengthen(sequence, tokens, spare_blocks=spare)

    def _admit(self) -> SimSequence | None:
        """The next one that waits, with blocks for the tokens of this step."""
        while self.waiting and len(self.prefilling) + len(self._batch) < self._profile.max_running:
            sequence = self.waiting[0]
            if self._device.blocks_for(sequence.known_tokens) > self._device.pool.num_blocks:
                self.waiting.pop(0)
                self._around.impossible(sequence)
            elif self._around.load(sequence):
                self.waiting.pop(0)
                self._loading[sequence] = None
            else:
                return self._admit_first()
        return None

    def _admit_first(self) -> SimSequence | None:
        sequence = self.waiting[0]
        if not sequence.table:
            self._device.match(sequence)
        wanted = self._device.blocks_for(sequence.known_tokens) - len(sequence.table)
        if wanted > self._device.pool.num_free - self._batch.blocks_for_next_step():
            self._device.release(sequence)
            sequence.computed = 0
            return None
        self.waiting.pop(0)
        self.prefilling.append(sequence)
        return sequence

    def _preempt(self) -> None:
        """Send the latest back to wait; it computes everything again, but for what stays cached."""
        latest = max([*self.prefilling, *self._batch.members], key=attrgetter("order"))
        if latest in self._batch:
            self._batch.leave(latest)
        else:
            self.prefilling.remove(latest)
        self._device.release(latest)
        latest.computed = 0
        latest.record.preempted += 1
        self._wait(latest)

    def _wait(self, sequence: SimSequence) -> None:
        """In order of arrival, after those that have all of their memory: were they to wait for one
        that has none, both might wait for ever."""
        insort(self.waiting, sequence, key=lambda waiting: (not waiting.table, waiting.order))

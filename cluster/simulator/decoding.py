"""The sequences that decode together on one instance, many steps at a time.

Between two changes of the batch nothing happens but that sequences grow into new blocks, each at
every `block_size`-th step. So a run of steps is one sum over a few numbers per step:

    step            │ 40    41    42    43 ...
    new blocks      │  0     2     0     1        how many sequences cross into a new block
    blocks in use   │ 90    92    92    93
    ends at (s)     │ 1.00  1.01  1.02  1.03
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cluster.simulator.device import Device
from cluster.simulator.profiles import Profile
from cluster.simulator.sequence import SimSequence


@dataclass(slots=True)
class Run:
    """Steps planned ahead; the owner cuts it short when something comes up."""

    first_step: int
    ends_s: NDArray[np.float64]
    grown: NDArray[np.int64]
    """Blocks taken from the first step up to the beginning of each."""
    length: int


class DecodeBatch:
    """Who decodes, until which step, and the blocks that they grow into.

    Those blocks have no name before a sequence ends, so that until then it does not matter which of
    them is whose.
    """

    def __init__(self, profile: Profile, device: Device, *, in_no_time: bool) -> None:
        """`in_no_time`: its steps take no time of their own."""
        self._profile = profile
        self._device = device
        self._in_no_time = in_no_time
        self._pool = device.pool
        self._size = profile.block_size_tokens
        self._grow = np.zeros(self._size, np.int64)
        """How many sequences need another block, by step modulo block size."""
        self._ends: list[tuple[int, int, SimSequence]] = []
        self._members: dict[SimSequence, None] = {}
        self._loose: list[int] = []
        self.step = 0
        """How many are over."""
        self._grown_steps = 0
        """How many have got their blocks: those that are over, and the one that is under way."""

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, sequence: SimSequence) -> bool:
        return sequence in self._members

    @property
    def members(self) -> list[SimSequence]:
        return list(self._members)

    def join(self, sequence: SimSequence) -> None:
        """It makes its next token in the next step; `table` covers what is computed."""
        assert sequence.tokens_left > 0
        until_full = self._size * len(sequence.table) + 1 - sequence.known_tokens
        assert until_full >= 0, "the table is too short"
        sequence.joined_step = self.step
        sequence.end_step = self.step + sequence.tokens_left
        sequence.grows_at = (self.step + until_full) % self._size
        self._grow[sequence.grows_at] += 1
        self._members[sequence] = None
        heapq.heappush(self._ends, (sequence.end_step, sequence.order, sequence))

    def leave(self, sequence: SimSequence) -> None:
        """Take it out, with all of its blocks in `table` and `generated` up to date."""
        del self._members[sequence]
        self._grow[sequence.grows_at] -= 1
        sequence.generated += self.step - sequence.joined_step
        first = (sequence.grows_at - sequence.joined_step) % self._size
        steps = self._grown_steps - sequence.joined_step
        grown = max(0, -(-(steps - first) // self._size))
        if grown:
            sequence.table += self._loose[-grown:]
            del self._loose[-grown:]
        sequence.computed = sequence.known_tokens - 1

    def ended(self) -> list[SimSequence]:
        """Those that have made their last token; they have left."""
        done = []
        while self._ends and self._ends[0][0] <= self.step:
            _, _, sequence = heapq.heappop(self._ends)
            if sequence in self._members and sequence.end_step <= self.step:
                self.leave(sequence)
                done.append(sequence)
        return done

    def blocks_for_next_step(self) -> int:
        return int(self._grow[self.step % self._size])

    def begin_step(self) -> None:
        """Take the blocks of the next step; there must be so many."""
        self._loose += self._pool.allocate(self.blocks_for_next_step())
        self._grown_steps = self.step + 1

    def end_step(self) -> None:
        self.step += 1
        self._grown_steps = self.step

    def step_s(self, joining: int) -> float:
        """Of a step in which `joining` more sequences make a token, with the blocks held now."""
        batch = len(self._members) + joining
        if not batch:
            return 0.0
        return float(self._durations(np.array([self._device.used_blocks]), batch)[0])

    def plan(self, now_s: float) -> Run:
        """Steps until the first sequence ends or the blocks do not suffice; may be none."""
        self._drop_those_who_left()
        steps = self._ends[0][0] - self.step
        phase = self.step % self._size
        turns = -(-(phase + steps) // self._size)
        grow = np.tile(self._grow, turns)[phase : phase + steps]
        grown = np.cumsum(grow)
        if grown[-1] > self._pool.num_free:
            grown = grown[: np.searchsorted(grown, self._pool.num_free, "right")]
        used = self._device.used_blocks + grown
        ends_s = now_s + np.cumsum(self._durations(used, len(self._members)))
        return Run(self.step, ends_s, grown, len(grown))

    def advance(self, run: Run, steps: int, *, under_way: bool) -> None:
        """The first `steps` steps of the run are over, and another one may be under way."""
        grown_steps = steps + under_way
        before = self._grown_steps - run.first_step
        if grown_steps > before:
            taken = int(run.grown[before - 1]) if before > 0 else 0
            self._loose += self._pool.allocate(int(run.grown[grown_steps - 1]) - taken)
            self._grown_steps = run.first_step + grown_steps
        self.step = run.first_step + steps

    def _durations(self, used: NDArray[np.int64], batch: int) -> NDArray[np.float64]:
        profile = self._profile
        tokens = np.minimum(used * self._size, profile.decode_kv_tokens_max)
        per_token = profile.decode_kv_token_s + tokens * profile.decode_kv_square_s
        fixed = profile.decode_step_s + batch * profile.decode_sequence_s
        durations: NDArray[np.float64] = fixed + tokens * per_token
        return durations * (not self._in_no_time)

    def _drop_those_who_left(self) -> None:
        while (
            self._ends[0][2] not in self._members or self._ends[0][0] != self._ends[0][2].end_step
        ):
            heapq.heappop(self._ends)

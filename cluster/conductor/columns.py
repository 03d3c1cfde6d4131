"""What changes about each member, as numbers in columns: predictions run over all workers at once.

```
             slot   0     1     2     3   …
 BUSY_UNTIL_S     12.0  13.5    0   12.2       one decision takes the columns of one model's workers
 SEQUENCES           3     7    0     2        (`Columns.values.take(slots, axis=1)`) and works on
 PREFILL_TOKEN_S   0.1   0.1    0   0.2        whole rows of that
```
"""

from __future__ import annotations

from math import exp
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]
Counts: TypeAlias = npt.NDArray[np.int64]
Slots: TypeAlias = npt.NDArray[np.intp]
Flags: TypeAlias = npt.NDArray[np.bool_]

STALL_MEMORY_S = 10.0
"""How far back the share of time is counted that a worker spends on prompts."""

_SETTLE_S = 1.0
"""A request needs this long, at most, to show in the load that its worker reports."""


class Field:
    """Rows of `Columns.values`. Moments are of the conductor's clock. Plain numbers: an enumeration
    would cost a decision several microseconds."""

    BUSY_UNTIL_S = 0
    """When the prompts that it was given are expected to be computed."""
    ROUTED_AT_S = 1
    """When it was given the last one."""
    ROUTED = 2
    """How many it was given."""
    STALL_S = 3
    """Seconds of prefill given lately, fading with `STALL_MEMORY_S`; as of `ROUTED_AT_S`."""
    LINK_UNTIL_S = 4
    """When what was promised over the network to it (a node) is expected to be there."""

    RUNNING = 5
    """Sequences, running or waiting, that it reports."""
    FREE_BLOCKS = 6
    TOTAL_BLOCKS = 7
    """Infinite: not reported."""

    SEQUENCES = 8
    """Placed on it to decode, and not completed."""
    PROMISED_BLOCKS = 9
    """That those are expected to need."""
    TOKENS = 10
    """That those are expected to hold, on average over their time."""
    TARGETED = 11
    """How many of those have a target for the time between tokens."""
    TIGHTNESS = 12
    """Sum of 1/target of those."""

    PREFILL_S = 13
    PREFILL_TOKEN_S = 14
    PREFILL_PAIR_S = 15
    LOAD_S = 16
    LOAD_HOST_BYTE_S = 17
    LOAD_DISK_BYTE_S = 18
    PULL_S = 19
    PULL_BYTE_S = 20
    STEP_S = 21
    STEP_SEQUENCE_S = 22
    STEP_TOKEN_S = 23
    """Coefficients of `cost.PrefillWork`, `cost.LoadWork` and `cost.DecodeWork`, in order, per
    single token, pair or byte."""

    COUNT = 24


class Columns:
    """Owned by one conductor. Grows with the largest slot, and never shrinks."""

    def __init__(self) -> None:
        self.values: Floats = np.zeros((Field.COUNT, 16))

    def clear(self, slot: int) -> None:
        """Begin anew for the member of this slot."""
        while slot >= self.values.shape[1]:
            self.values = np.hstack([self.values, np.zeros_like(self.values)])
        self.values[: Field.PREFILL_S, slot] = 0.0
        self.values[[Field.FREE_BLOCKS, Field.TOTAL_BLOCKS], slot] = np.inf

    def report(self, slot: int, now_s: float, running: int, work_s: float) -> None:
        """What it says of itself: sequences, and seconds of prefill that wait there.

        Corrects our own account: upwards at once, downwards when what was routed last must have
        shown in the report.
        """
        values = self.values
        values[Field.RUNNING, slot] = running
        until_s = now_s + work_s
        settled = now_s - values[Field.ROUTED_AT_S, slot] >= _SETTLE_S
        if settled or until_s > values[Field.BUSY_UNTIL_S, slot]:
            values[Field.BUSY_UNTIL_S, slot] = until_s

    def give(self, slot: int, now_s: float, work_s: float) -> None:
        """Count in a prompt to prefill there."""
        values = self.values
        values[Field.BUSY_UNTIL_S, slot] = max(now_s, values[Field.BUSY_UNTIL_S, slot]) + work_s
        age_s = now_s - values[Field.ROUTED_AT_S, slot]
        values[Field.STALL_S, slot] *= exp(-min(age_s / STALL_MEMORY_S, 50.0))
        values[Field.STALL_S, slot] += work_s
        values[Field.ROUTED_AT_S, slot] = now_s
        values[Field.ROUTED, slot] += 1

    def transfer(self, slot: int, now_s: float, seconds: float) -> None:
        """Count in so much use of the network link of a node."""
        values = self.values
        values[Field.LINK_UNTIL_S, slot] = max(now_s, values[Field.LINK_UNTIL_S, slot]) + seconds

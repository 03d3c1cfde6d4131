"""What a placement policy is: columns of predictions in, one choice out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from cluster.conductor.prospects import Prospects


@dataclass(frozen=True, slots=True)
class Choice:
    """Row numbers: of `prospects.prefill`, and of `prospects.alone` and `prospects.decode`."""

    decode: int
    prefill: int | None = None
    """None: the decode worker computes the prompt by itself."""


class Policy(Protocol):
    """Decides from predictions alone, and keeps at most what it decided before. Owned by one
    conductor; never waits.

    `prospects.decode` has at least one row. `prospects.prefill` is None where the decode workers
    must do it all; otherwise it has at least one row. Columns are computed when they are first
    asked for: a policy pays for what it looks at. All policies see the same prospects, so that any
    can be replayed on what another one saw. `docs/policies.md` shows how to write one.
    """

    def choose(self, prospects: Prospects) -> Choice:
        """Where this request goes."""

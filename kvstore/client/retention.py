"""How long blocks should stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvstore.core.errors import InvalidArgumentError
from kvstore.wire.v1 import node_pb2

PRIORITY_MAX = 100


@dataclass(frozen=True, slots=True)
class Retention:
    """For keys [first, last) of the call. Where nothing is said, the priority is 35.

    Raises InvalidArgumentError if a field is out of range.
    """

    first: int
    last: int
    priority: int
    """0 - 100; lower goes first."""
    duration_s: float | None = None
    """After it the priority is 35 again; None = until evicted."""

    def __post_init__(self) -> None:
        if not 0 <= self.first < self.last:
            raise InvalidArgumentError(
                f"retention: [{self.first}, {self.last}) is no range of keys; first must be below "
                "last"
            )
        if not 0 <= self.priority <= PRIORITY_MAX:
            raise InvalidArgumentError(
                f"retention.priority must lie in [0, {PRIORITY_MAX}], got {self.priority}"
            )
        if self.duration_s is not None and self.duration_s <= 0:
            raise InvalidArgumentError(
                f"retention.duration_s must be positive, or None for ever; got {self.duration_s:g}"
            )

    @classmethod
    def of_tokens(
        cls,
        first_token: int,
        last_token: int,
        block_size_tokens: int,
        priority: int,
        duration_s: float | None = None,
    ) -> Retention:
        """For tokens [first_token, last_token) of the sequence whose blocks the keys name: every
        block that holds one of them. Raises InvalidArgumentError."""
        first, last = first_token // block_size_tokens, -(-last_token // block_size_tokens)
        return cls(first, last, priority, duration_s)


def retention_messages(retention: Sequence[Retention]) -> list[node_pb2.Retention]:
    return [
        node_pb2.Retention(
            first=part.first,
            last=part.last,
            priority=part.priority,
            duration_ms=0 if part.duration_s is None else max(int(part.duration_s * 1000), 1),
        )
        for part in retention
    ]

"""Requests that were placed and not completed yet."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.conductor.members import Record
from cluster.conductor.types import Candidate, Request
from kvstore.core.ids import MemberId, RequestId
from kvstore.core.layout import KVLayout


@dataclass(frozen=True, slots=True)
class InFlight:
    request: Request
    layout: KVLayout
    prefiller: Record
    """Who computes the prompt: the prefill worker, or the decode worker without one."""
    decoder: Record
    predicted: Candidate
    batch: int
    """Sequences in the decode worker's batch, this one included."""
    blocks: int
    """Device blocks that it needs at the decode worker."""
    placed_s: float
    avoid: frozenset[MemberId]
    """Workers that it was on before: routed again, it failed there."""


class InFlightTable:
    """By request id, oldest first. Bounded: the oldest is given up for a new one, or after a time.

    A gateway that dies never completes its requests; they must not weigh on workers for ever.
    """

    def __init__(self, *, max_requests: int = 65_536, max_age_s: float = 900.0) -> None:
        self._max_requests = max_requests
        self._max_age_s = max_age_s
        self._requests: dict[RequestId, InFlight] = {}
        self._sequences: dict[MemberId, int] = {}
        self._blocks: dict[MemberId, int] = {}

    def __len__(self) -> int:
        return len(self._requests)

    def add(self, placed: InFlight) -> list[InFlight]:
        """Returns those given up for it."""
        assert placed.request.request_id not in self._requests
        self._requests[placed.request.request_id] = placed
        self._count(placed, 1)
        given_up = []
        while len(self._requests) > self._max_requests or self._oldest_before(
            placed.placed_s - self._max_age_s
        ):
            given_up.append(self._pop(next(iter(self._requests))))
        return given_up

    def pop(self, request_id: RequestId) -> InFlight | None:
        return self._pop(request_id) if request_id in self._requests else None

    def sequences(self, member_id: MemberId) -> int:
        """Placed on this worker for decoding."""
        return self._sequences.get(member_id, 0)

    def blocks(self, member_id: MemberId) -> int:
        """That those need."""
        return self._blocks.get(member_id, 0)

    def _pop(self, request_id: RequestId) -> InFlight:
        placed = self._requests.pop(request_id)
        self._count(placed, -1)
        return placed

    def _oldest_before(self, moment_s: float) -> bool:
        return next(iter(self._requests.values())).placed_s < moment_s

    def _count(self, placed: InFlight, sign: int) -> None:
        decoder = placed.decoder.member.member_id
        for counts, amount in ((self._sequences, 1), (self._blocks, placed.blocks)):
            counts[decoder] = counts.get(decoder, 0) + sign * amount
            if not counts[decoder]:
                del counts[decoder]

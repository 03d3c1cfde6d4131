"""Requests that were placed and not completed yet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cluster.conductor.members import Record
from cluster.conductor.past import Past
from cluster.conductor.prospects import LinkUse
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
    itl_s: float
    """Predicted at the decode worker."""
    blocks: int
    """Device blocks that it is expected to need at the decode worker."""
    tokens: float
    """That it is expected to hold there, on average."""
    answer_tokens: float
    """Expected length of its answer."""
    placed_s: float
    joins_s: float
    """When it is expected to begin decoding."""
    leaves_s: float
    """And to end."""
    transfers: Sequence[LinkUse]
    before: Past
    """Of the decode worker, when it was placed."""
    avoid: frozenset[MemberId]
    """Workers that it was on before: routed again, it failed there."""

    @property
    def computed_tokens(self) -> int:
        """Of the prompt, as expected."""
        return max(1, self.request.prompt_tokens - self.predicted.cached_tokens)


class InFlightTable:
    """By request id, oldest first. Bounded: the oldest is given up for a new one, or after a time.

    A gateway that dies never completes its requests; they must not weigh on workers for ever.
    """

    def __init__(self, *, max_requests: int = 65_536, max_age_s: float = 900.0) -> None:
        self._max_requests = max_requests
        self._max_age_s = max_age_s
        self._requests: dict[RequestId, InFlight] = {}

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[InFlight]:
        return iter(self._requests.values())

    def get(self, request_id: RequestId) -> InFlight | None:
        return self._requests.get(request_id)

    def add(self, placed: InFlight) -> list[InFlight]:
        """Returns those given up for it."""
        assert placed.request.request_id not in self._requests
        self._requests[placed.request.request_id] = placed
        given_up = []
        while len(self._requests) > self._max_requests or self._oldest_before(
            placed.placed_s - self._max_age_s
        ):
            given_up.append(self._requests.pop(next(iter(self._requests))))
        return given_up

    def pop(self, request_id: RequestId) -> InFlight | None:
        return self._requests.pop(request_id, None)

    def _oldest_before(self, moment_s: float) -> bool:
        return next(iter(self._requests.values())).placed_s < moment_s

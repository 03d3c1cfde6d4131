"""Where a request goes, given what is predicted of every worker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from cluster.conductor.types import Candidate, DecodeCandidate, Request
from kvstore.core.ids import NodeId

_HORIZON_TOKENS = 64
"""The pace of so many tokens weighs against the time to the first one; answers are rarely as long
as `max_tokens` allows."""

_EQUAL = 0.05
"""Predictions are no better than this."""


@dataclass(frozen=True, slots=True)
class Choice:
    prefill: Candidate | None
    """None: the decode worker prefills by itself."""
    decode: DecodeCandidate


class Policy(Protocol):
    """Decides from predictions alone; owned by one conductor. Both lists are in order of member id.

    Every policy sees the same candidates, so that any can be replayed on what another one saw.
    """

    def choose(
        self,
        request: Request,
        prefills: Sequence[Candidate],
        decodes: Sequence[DecodeCandidate],
    ) -> Choice:
        """One of each, from lists that are not empty."""

    def choose_alone(
        self,
        request: Request,
        prefills: Sequence[Candidate],
        decodes: Sequence[DecodeCandidate],
    ) -> Choice:
        """One decode worker that does it all; `prefills[i]` is what `decodes[i]` would take to
        prefill."""


class JointPlacement:
    """The pair with the least predicted time to the first token, hand-over and pace together.

    A hand-over inside one node loads the prompt's blocks; to another node it computes what is not
    there. So the best decode worker depends on the node of the prefill worker, and on nothing else
    of it: one pass over each list finds the best pair. Pairs within 5 % of the best are equal, and
    the least loaded of them gets the request.
    """

    def choose(
        self,
        request: Request,
        prefills: Sequence[Candidate],
        decodes: Sequence[DecodeCandidate],
    ) -> Choice:
        horizon = min(request.max_tokens, _HORIZON_TOKENS)
        far = min((_Pair.of(d, d.join_far_s, horizon) for d in decodes), key=_Pair.order)
        best: dict[NodeId, _Pair] = {}
        for decode in decodes:
            if node := decode.member.node_id:
                near = _Pair.of(decode, decode.join_near_s, horizon)
                best[node] = min(best.get(node, far), near, key=_Pair.order)
        return _least_loaded([best.get(p.member.node_id, far).after(p) for p in prefills])

    def choose_alone(
        self,
        request: Request,
        prefills: Sequence[Candidate],
        decodes: Sequence[DecodeCandidate],
    ) -> Choice:
        horizon = min(request.max_tokens, _HORIZON_TOKENS)
        pairs = [
            _Pair.of(decode, prefill.ttft_s, horizon, prefill.routed)
            for prefill, decode in zip(prefills, decodes, strict=True)
        ]
        return _least_loaded(pairs)


@dataclass(slots=True)
class _Pair:
    """A choice and what speaks against it."""

    prefill: Candidate | None
    decode: DecodeCandidate
    seconds: float
    routed: int

    @staticmethod
    def of(decode: DecodeCandidate, join_s: float, horizon: int, routed: int = 0) -> _Pair:
        return _Pair(None, decode, join_s + horizon * decode.itl_s, routed)

    def after(self, prefill: Candidate) -> _Pair:
        return _Pair(prefill, self.decode, prefill.ttft_s + self.seconds, prefill.routed)

    def order(self) -> tuple[bool, float, int]:
        """Where the blocks do not fit, it would have to wait for memory: the last resort."""
        return not self.decode.fits, self.seconds, self.decode.batch


def _least_loaded(pairs: Sequence[_Pair]) -> Choice:
    best = min(pairs, key=_Pair.order)
    limit_s = best.seconds * (1 + _EQUAL)
    equal = (p for p in pairs if p.decode.fits == best.decode.fits and p.seconds <= limit_s)
    pair = min(equal, key=lambda p: (p.decode.batch, p.routed, p.seconds))
    return Choice(pair.prefill, pair.decode)


class RoundRobin:
    """Each worker in turn, whatever is predicted: the baseline to compare with."""

    def __init__(self) -> None:
        self._turn = 0

    def choose(
        self,
        request: Request,
        prefills: Sequence[Candidate],
        decodes: Sequence[DecodeCandidate],
    ) -> Choice:
        turn, self._turn = self._turn, self._turn + 1
        return Choice(prefills[turn % len(prefills)], decodes[turn % len(decodes)])

    def choose_alone(
        self,
        request: Request,
        prefills: Sequence[Candidate],
        decodes: Sequence[DecodeCandidate],
    ) -> Choice:
        turn, self._turn = self._turn, self._turn + 1
        return Choice(None, decodes[turn % len(decodes)])

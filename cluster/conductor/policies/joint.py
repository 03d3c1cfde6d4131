"""Joint placement: the pair of workers that costs all requests together the least.

```
 cost of a pair =   queue + work * price          the request's own wait; work counts more when
                                                  there is little to spare
                  + hand-over + pace              from its first token on
                  + harm to those decoding there
                  + work that is lost to a further copy of a prefix
                  + what misses are worth:        own targets, and those of the ones decoding there
```
"""

from __future__ import annotations

from math import isfinite

import numpy as np

from cluster.conductor.columns import STALL_MEMORY_S, Flags, Floats
from cluster.conductor.decoding import Decoding
from cluster.conductor.policies.base import Choice
from cluster.conductor.policies.heat import PrefixHeat
from cluster.conductor.policies.joining import Joining
from cluster.conductor.prefilling import Prefilling
from cluster.conductor.prospects import Prospects

_HORIZON_TOKENS = 64
"""The pace of so many tokens weighs against the time to the first one."""

_EQUAL = 0.05
"""Predictions of the time to first token are no better than this."""

_MISS_S = 10.0
"""Seconds of waiting that one request beyond its targets weighs as much as."""

_UNSURE = 0.2
"""So far below its target a prediction begins to count as a possible miss, and so far above as a
certain one."""

_SHORT_TOKENS = 2048
_SHORT_SHARE = 0.5
"""An uncached rest is short if it is both: so many tokens, and that share of the prompt."""

_MIXED_S = 0.3
"""Decode workers are kept from long prompts unless that costs a request so much."""

_BUSY_MAX = 0.9
_NO_ROOM_S = 1e6
"""Where the blocks do not fit, it would have to wait for memory: the last resort."""


class Joint:
    """The default. Pure cost comparison for each request: one hot prefix or one overloaded worker
    changes nothing for requests that have to do with neither.

    - Conditional disaggregation: where little of a prompt is left to compute, the decode worker
      does it itself if that harms those decoding there less than the hand-over costs.
    - A prefix is copied to a further worker where the wait for those that have it is longer than
      the copy costs; it costs less, the more often the prefix was asked for lately.
    """

    def __init__(self) -> None:
        self._heat = PrefixHeat()

    def choose(self, prospects: Prospects) -> Choice:
        lost = self._heat.lost_share(prospects)
        decode = prospects.decode
        alone = _prompt_s(prospects, prospects.alone, lost)
        alone += _answer_s(prospects, decode, decode.itl_alone_s)
        if prospects.prefill is None:
            return Choice(_one_of_the_best(alone, prospects.alone, decode.sequences))
        alone += np.where(_is_short(prospects), 0.0, _MIXED_S)
        joining = Joining(prospects, _answer_s(prospects, decode, decode.itl_s), _join_cost)
        pair = _prompt_s(prospects, prospects.prefill, lost) + joining.best_s
        prefill = _one_of_the_best(pair, prospects.prefill, prospects.prefill.queue_s)
        if pair[prefill] <= alone.min():
            return Choice(joining.decode_for(prefill), prefill)
        return Choice(_one_of_the_best(alone, prospects.alone, decode.sequences))


def _prompt_s(prospects: Prospects, workers: Prefilling, lost: float) -> Floats:
    """Cost of computing the prompt at each of these."""
    busy = min(float(workers.stall_s.mean()) / STALL_MEMORY_S, _BUSY_MAX)
    cost: Floats = workers.queue_s + workers.ready_s * (1 / (1 - busy))
    if lost:
        cost += workers.duplicated_s * lost
    target_s = prospects.request.targets.ttft_s
    if isfinite(target_s):
        cost += _MISS_S * _missed(workers.ttft_s * (1 / target_s))
    return cost


def _answer_s(prospects: Prospects, decode: Decoding, itl_s: Floats) -> Floats:
    """Cost of decoding at each of these, but for the hand-over: the request's pace, and what its
    sequence, and perhaps its prompt, costs those that are there."""
    horizon = min(prospects.context.answer_tokens, _HORIZON_TOKENS)
    before_s = decode.itl_before_s
    cost = itl_s + (itl_s - before_s) * decode.sequences
    cost *= horizon
    if decode.targeted.any():
        missed = _missed(itl_s * decode.tightness) - _missed(before_s * decode.tightness)
        cost += _MISS_S * decode.targeted * missed
    fits = decode.fits
    if not fits.all():
        cost += np.where(fits, 0.0, _NO_ROOM_S)
    return cost + _own_miss(prospects, itl_s)


def _join_cost(prospects: Prospects, join_s: Floats) -> Floats:
    """Of a hand-over that takes so long: waited for once, in the middle of the answer."""
    target_s = prospects.request.targets.itl_s
    if not isfinite(target_s):
        return join_s
    decode, per_token = prospects.decode, 1 / prospects.context.answer_tokens
    late = _own_miss(prospects, decode.itl_s + join_s * per_token)
    cost: Floats = join_s + (late - _own_miss(prospects, decode.itl_s))
    return cost


def _own_miss(prospects: Prospects, pace_s: Floats) -> Floats | float:
    target_s = prospects.request.targets.itl_s
    return _MISS_S * _missed(pace_s * (1 / target_s)) if isfinite(target_s) else 0.0


def _missed(share: Floats) -> Floats:
    """How likely a target is missed of which this share is predicted to be used up."""
    chance: Floats = (share - (1 - _UNSURE)) * (1 / (2 * _UNSURE))
    return np.minimum(np.maximum(chance, 0.0), 1.0)


def _is_short(prospects: Prospects) -> Flags:
    prompt_tokens = prospects.request.prompt_tokens
    rest = prompt_tokens - prospects.alone.own_tokens
    short: Flags = rest <= min(_SHORT_TOKENS, _SHORT_SHARE * prompt_tokens)
    return short


def _one_of_the_best(cost: Floats, workers: Prefilling, load: Floats) -> int:
    """The least loaded of those that are equal, as far as anyone can predict."""
    best = int(cost.argmin())
    limit = cost[best] + _EQUAL * (workers.queue_s[best] + workers.ready_s[best])
    rows = np.flatnonzero(cost <= limit)
    if len(rows) == 1:
        return best
    order = np.lexsort((cost[rows], workers.routed[rows], load[rows]))
    return int(rows[order[0]])

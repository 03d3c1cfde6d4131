"""Session affinity: the requests of one session go to one worker, as long as it keeps up."""

from __future__ import annotations

import numpy as np

from cluster.conductor.columns import Floats
from cluster.conductor.hashing import Words, mixed, word
from cluster.conductor.policies.base import Choice
from cluster.conductor.policies.decode import calmest
from cluster.conductor.prospects import Prospects
from cluster.conductor.types import Request

_OVERLOAD = 1.25
"""A worker with more than so many times the mean load is passed over for the next in rank."""


class SessionSticky:
    """Rendezvous hashing: each session ranks the workers in an order of its own, so that a worker
    that comes or goes moves no more sessions than its own share.

    A request without a session follows its first block: whoever shares a system prompt.
    """

    def choose(self, prospects: Prospects) -> Choice:
        prefill, decode = prospects.prefill, prospects.decode
        key, names = _key(prospects.request), prospects.view.names
        if prefill is None:
            return Choice(_first(key, names[prospects.view.num_prefills :], decode.sequences + 1))
        load_s = prefill.ttft_s
        return Choice(calmest(decode), _first(key, names[: prospects.view.num_prefills], load_s))


def _key(request: Request) -> int:
    if request.session:
        return word(request.session)
    return request.routing_keys[0] if request.routing_keys else word(request.request_id)


def _first(key: int, names: Words, load: Floats) -> int:
    """The first in the order of this key that is not overloaded. One is not: the least loaded."""
    ranks = mixed(key, names)
    able = load <= max(_OVERLOAD * load.mean(), load.min())
    return int(np.where(able, ranks, 0).argmax())

"""Requests for one prompt that come together: one computes it, the others use its blocks."""

from __future__ import annotations

from dataclasses import dataclass, field

from kvstore.core.ids import BlockHash
from model_runner.types import Request


@dataclass(slots=True)
class _Pair:
    """Who computes a prefix, and who waits for that."""

    first: Request
    waiting: list[Request] = field(default_factory=list)


class Twins:
    """Several samples of one prompt (`n` > 1), or several users of it, arrive before any block of
    it is there to be found. The first starts; the others wait until its prompt is computed, and
    then find its blocks in the device tier, instead of computing or loading them again.

    Whoever waits holds no blocks and is not queued: it joins the end of the queue when the first
    has its next token, and the next of them starts if the first ends before that. Only those wait
    that share all blocks that they could use, so that nothing is left to do but their last tokens.
    Pure; owned by the engine's thread. Bounded by the requests that an engine holds. O(1) a call.
    """

    def __init__(self) -> None:
        self._pairs: dict[BlockHash, _Pair] = {}
        self._prefix_of: dict[Request, BlockHash] = {}

    def may_start(self, request: Request, prefix: BlockHash | None) -> bool:
        """False if it is kept here: `computed` or `left` will hand it out again."""
        if prefix is None:
            return True
        self._prefix_of[request] = prefix
        pair = self._pairs.setdefault(prefix, _Pair(request))
        if pair.first is not request:
            pair.waiting.append(request)
        return pair.first is request

    def computed(self, request: Request) -> list[Request]:
        """Its prompt is computed: those that waited for it, to be queued. Idempotent."""
        pair = self._end(request)
        for twin in pair.waiting if pair else ():
            del self._prefix_of[twin]
        return pair.waiting if pair else []

    def left(self, request: Request) -> list[Request]:
        """It ended. If its prompt was not computed: those that waited for it, to be started anew.
        Idempotent."""
        pair = self._end(request)
        return pair.waiting if pair else []

    def _end(self, request: Request) -> _Pair | None:
        prefix = self._prefix_of.pop(request, None)
        if prefix is None:
            return None
        if self._pairs[prefix].first is request:
            return self._pairs.pop(prefix)
        self._pairs[prefix].waiting.remove(request)
        return None

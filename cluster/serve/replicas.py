"""The conductor over the replicas of one Serve deployment. Nothing of Ray is needed here."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from math import inf

from cluster.conductor.conductor import Conductor, make_policy
from cluster.conductor.feed import IndexFeed
from cluster.conductor.routing_keys import RoutingKeys
from cluster.conductor.types import (
    Load,
    Member,
    ModelInfo,
    Outcome,
    Request,
    Role,
)
from cluster.conductor.waiting import QueueLimits
from cluster.serve.prompts import ServePrompt
from kvstore.core.errors import KVStoreError
from kvstore.core.ids import BlockHash, BlockKeys, MemberId, NodeId, RequestId
from kvstore.core.layout import KVLayout
from kvstore.core.ports import Clock
from kvstore.tiers.base import TierKind

_MODEL = "deployment"
_ANSWER_TOKENS = 1024
"""At most, of requests that do not say."""


class _Replica:
    """What a replica is taken to hold: what it was asked to compute, the latest of it."""

    def __init__(self, feed: IndexFeed, layout: KVLayout, blocks_max: int) -> None:
        self._feed = feed
        self._layout = layout
        self._blocks_max = blocks_max
        self._held: OrderedDict[BlockHash, None] = OrderedDict()

    def computed(self, hashes: Sequence[BlockHash]) -> None:
        new = [block_hash for block_hash in hashes if block_hash not in self._held]
        for block_hash in reversed(hashes):  # the end of a prompt goes before its beginning
            self._held[block_hash] = None
            self._held.move_to_end(block_hash)
        excess = len(self._held) - self._blocks_max
        gone = [self._held.popitem(last=False)[0] for _ in range(excess)]
        self._feed.stored(TierKind.DEVICE, BlockKeys(self._layout.fingerprint, new))
        self._feed.removed(TierKind.DEVICE, BlockKeys(self._layout.fingerprint, gone))


class Replicas:
    """Decode workers that prefill by themselves. Owned by one event loop; no verb waits.

    Serve tells of no block that came or went, so a replica is taken to hold the last
    `blocks_per_replica` blocks that it was asked to compute. Bounded by that, and by the
    conductor's own bounds.
    """

    def __init__(
        self, clock: Clock, *, policy: str, block_size_tokens: int, blocks_per_replica: int
    ) -> None:
        """Raises InvalidArgumentError for a policy that is not known, or a block size that is
        none."""
        self._layout = KVLayout(
            num_layers=1,
            num_kv_heads=1,
            head_dim=1,
            block_size_tokens=block_size_tokens,
            dtype="float16",
        )
        self._model = ModelInfo(_MODEL, bytes(32), self._layout, 1 << 31, "")
        self._blocks_per_replica = blocks_per_replica
        self._conductor = Conductor(
            make_policy(policy),
            clock,
            member_ttl_s=inf,
            admission="none",
            queue=QueueLimits(requests_max=0),
        )
        self._replicas: dict[str, _Replica] = {}
        self._placed: dict[str, str] = {}

    def update(self, names: Collection[str]) -> None:
        """Who is there now."""
        for name in [known for known in self._replicas if known not in names]:
            self.forget(name)
        for name in names:
            if name not in self._replicas:
                member = Member(MemberId(name), Role.DECODE, "", NodeId(""), model=self._model)
                feed = self._conductor.register(member, 1)
                assert feed is not None
                self._replicas[name] = _Replica(feed, self._layout, self._blocks_per_replica)

    def forget(self, name: str) -> None:
        if self._replicas.pop(name, None) is not None:
            self._conductor.forget(MemberId(name))

    def report(self, name: str, ongoing: int) -> None:
        """How many requests it says it has. No error for one not known."""
        if name in self._replicas:
            self._conductor.heartbeat(MemberId(name), 1, Load(running=ongoing))

    def rank(self, request_id: str, prompt: ServePrompt, among: Collection[str]) -> list[str]:
        """The best first, by the policy; the others by their time to first token. It is counted in
        at the best one; ask again, and it is counted in once."""
        self.cancel(request_id)
        try:
            placement = self._conductor.route(self._request(request_id, prompt))
        except KVStoreError:  # nobody is registered yet
            return list(among)
        best = str(placement.decode.member_id)
        self._placed[request_id] = best
        if best not in among:
            self.cancel(request_id)
        ranked = dict.fromkeys((best, *self._soonest(request_id), *among))
        return [name for name in ranked if name in among]

    def routed(self, request_id: str, name: str, prompt: ServePrompt) -> None:
        """It went there, whether it was the best or not."""
        if self._placed.get(request_id) != name:
            self.cancel(request_id)
        if name in self._replicas:
            self._replicas[name].computed(prompt.hashes)

    def completed(self, request_id: str, name: str) -> None:
        """There. No error for one not known, or that is elsewhere by now."""
        if self._placed.get(request_id) == name:
            del self._placed[request_id]
            self._conductor.complete(Outcome(RequestId(request_id)))

    def cancel(self, request_id: str) -> None:
        """It goes nowhere. No error for one not known."""
        if self._placed.pop(request_id, None) is not None:
            self._conductor.cancel(RequestId(request_id))

    def _request(self, request_id: str, prompt: ServePrompt) -> Request:
        blocks = prompt.tokens // self._layout.block_size_tokens
        return Request(
            RequestId(request_id),
            _MODEL,
            RoutingKeys.of_hashes(prompt.hashes[:blocks]),
            prompt.tokens,
            prompt.answer_tokens_max or _ANSWER_TOKENS,
        )

    def _soonest(self, request_id: str) -> list[str]:
        explanation = self._conductor.explain(RequestId(request_id))
        assert explanation is not None
        ordered = sorted(explanation.alone, key=lambda candidate: candidate.ttft_s)
        return [str(candidate.member.member_id) for candidate in ordered]

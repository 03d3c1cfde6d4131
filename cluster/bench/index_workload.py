"""What the index is measured with: prompts of 200 blocks, each held by four workers."""

from __future__ import annotations

import random

from cluster.bench.index_dynamo_driver import BLOCKS, CHAINS, COPIES, SEED
from cluster.conductor.feed import IndexFeed
from cluster.conductor.index import PrefixIndex
from cluster.conductor.matching import Match
from cluster.conductor.routing_keys import RoutingKeys
from kvstore.core.ids import BlockHash, BlockKeys, LayoutFingerprint
from kvstore.events import codec
from kvstore.tiers.base import TierKind
from kvstore.wire.v1.event_pb2 import EventBatch

_LAYOUT = LayoutFingerprint(bytes(16))


class Workload:
    """Chains and events as they come from the network, and an index that takes them in."""

    def __init__(self, workers: int, chains: int = CHAINS) -> None:
        rng = random.Random(SEED)  # noqa: S311
        hashes = [[BlockHash(rng.randbytes(32)) for _ in range(BLOCKS)] for _ in range(chains)]
        self.chains = [RoutingKeys.of_hashes(chain) for chain in hashes]
        self.events = [
            (worker, _stored(number, chain))
            for number, chain in enumerate(hashes)
            for worker in rng.sample(range(workers), COPIES)
        ]
        self.blocks = len(self.events) * BLOCKS
        self.index = PrefixIndex()
        self._workers = workers
        self._candidates = (1 << workers) - 1

    def begin(self) -> None:
        """Empty the index."""
        self.index = PrefixIndex()

    def insert(self) -> None:
        """From the bytes of each event on."""
        feeds = [IndexFeed(self.index, worker, lambda: True) for worker in range(self._workers)]
        for worker, event in self.events:
            codec.deliver(codec.parse(EventBatch, event).events, feeds[worker])
        assert len(self.index) == len(self.chains) * BLOCKS

    def match(self, chain: RoutingKeys) -> Match:
        return self.index.match(chain, self._candidates, {})


def _stored(number: int, hashes: list[BlockHash]) -> bytes:
    events = codec.stored_events(TierKind.DEVICE, BlockKeys(_LAYOUT, hashes))
    batch = EventBatch(publisher_id="worker", epoch=1, sequence=number + 1, events=events)
    return batch.SerializeToString()

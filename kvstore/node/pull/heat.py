"""How hot the replicas are that this node pulled from others. Pure."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from kvstore.core.ids import BlockKey
from kvstore.core.ports import Clock

HALF_LIFE_S = 20.0
"""After this time without a read a block is half as hot."""
COLD_HEAT = 0.25
"""A replica cooler than this leaves. So one that was read once leaves after three half-lives."""
HOT_READS = 2
"""Reads after which a replica is worth a place on this node's disk, too."""


@dataclass(slots=True)
class _Replica:
    length_bytes: int
    score: float
    num_reads: int = 0


class ReplicaHeat:
    """Heat of each replica: 1 when it comes, 1 more with each read, halved every HALF_LIFE_S.

    It is kept as the logarithm it would have had at time 0. So that of a block changes with its
    reads only, and the order among blocks not at all with time. `read` costs one lookup a block;
    the heap learns of it when the block comes up there.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._replicas: dict[BlockKey, _Replica] = {}
        self._heap: list[tuple[float, BlockKey]] = []
        self.used_bytes = 0

    def __len__(self) -> int:
        return len(self._replicas)

    def __contains__(self, key: BlockKey) -> bool:
        return key in self._replicas

    def add(self, key: BlockKey, length_bytes: int) -> None:
        assert key not in self._replicas
        score = self._at_time_0(1.0)
        self._replicas[key] = _Replica(length_bytes, score)
        heapq.heappush(self._heap, (score, key))
        self.used_bytes += length_bytes

    def read(self, keys: Iterable[BlockKey]) -> list[BlockKey]:
        """Note a read of those that are replicas; returns those that have become hot by it."""
        became_hot = []
        for key in keys:
            if (replica := self._replicas.get(key)) is None:
                continue
            replica.num_reads += 1
            replica.score = self._at_time_0(self._heat(replica.score) + 1.0)
            if replica.num_reads == HOT_READS:
                became_hot.append(key)
        return became_hot

    def forget(self, keys: Iterable[BlockKey]) -> None:
        """They left the host tier. Those that are no replicas are passed over."""
        for key in keys:
            if replica := self._replicas.pop(key, None):
                self.used_bytes -= replica.length_bytes
        if len(self._heap) > 2 * len(self._replicas) + 64:
            self._heap = [(replica.score, key) for key, replica in self._replicas.items()]
            heapq.heapify(self._heap)

    def clear(self) -> None:
        self._replicas.clear()
        self._heap.clear()
        self.used_bytes = 0

    def coldest(self, length_bytes: int) -> list[BlockKey]:
        """Of all, the coldest that make up so many bytes. Each comes once, until `put_back`."""
        taken: list[BlockKey] = []
        for key in self._ascending():
            if length_bytes <= 0:
                heapq.heappush(self._heap, (self._replicas[key].score, key))
                break
            taken.append(key)
            length_bytes -= self._replicas[key].length_bytes
        return taken

    def cold(self) -> list[BlockKey]:
        """All that are colder than COLD_HEAT. Each comes once, until `put_back`."""
        limit = self._at_time_0(COLD_HEAT)
        taken: list[BlockKey] = []
        for key in self._ascending():
            if (score := self._replicas[key].score) > limit:
                heapq.heappush(self._heap, (score, key))
                break
            taken.append(key)
        return taken

    def put_back(self, keys: Sequence[BlockKey]) -> None:
        """They were offered to leave and stay: somebody uses them."""
        for key in keys:
            if replica := self._replicas.get(key):
                heapq.heappush(self._heap, (replica.score, key))

    def _ascending(self) -> Iterator[BlockKey]:
        """Take entries off the heap, coldest first; those that were read since are sorted in
        anew."""
        seen = set[BlockKey]()  # one that left and came back may have two entries
        while self._heap:
            score, key = heapq.heappop(self._heap)
            if (replica := self._replicas.get(key)) is None or key in seen:
                continue
            if replica.score > score:
                heapq.heappush(self._heap, (replica.score, key))
            else:
                seen.add(key)
                yield key

    def _heat(self, score: float) -> float:
        return math.exp2(score - self._clock() / HALF_LIFE_S)

    def _at_time_0(self, heat: float) -> float:
        return math.log2(heat) + self._clock() / HALF_LIFE_S

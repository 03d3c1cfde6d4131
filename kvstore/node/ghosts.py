"""Which blocks were here once: tells "evicted" from "never stored"."""

from __future__ import annotations

from collections.abc import Iterable

from kvstore.core.ids import BlockKey, RoutingKey, routing_key


class Ghosts:
    """The most recently evicted blocks, by routing key: a collision costs a wrong reason only.

    Bound: `capacity` keys; the oldest is forgotten first.
    """

    def __init__(self, capacity: int) -> None:
        assert capacity >= 1
        self._capacity = capacity
        self._keys: dict[RoutingKey, None] = {}

    def add(self, keys: Iterable[BlockKey]) -> None:
        for key in keys:
            ghost = routing_key(key.hash)
            self._keys.pop(ghost, None)
            self._keys[ghost] = None
        while len(self._keys) > self._capacity:
            del self._keys[next(iter(self._keys))]

    def discard(self, keys: Iterable[BlockKey]) -> None:
        for key in keys:
            self._keys.pop(routing_key(key.hash), None)

    def __contains__(self, key: BlockKey) -> bool:
        return routing_key(key.hash) in self._keys

    def __len__(self) -> int:
        return len(self._keys)

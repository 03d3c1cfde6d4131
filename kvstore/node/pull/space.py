"""Host memory for replicas: blocks that other nodes hold, pulled to where they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from kvstore.core.ids import BlockKey, BlockKeys
from kvstore.node.arrivals import Arrivals
from kvstore.node.pull.heat import ReplicaHeat
from kvstore.node.replicas import Replicas
from kvstore.tiers.base import BlockInfo, MissReason, ReserveOutcome, TierKind


@dataclass(frozen=True, slots=True)
class Place:
    """A reserved slot for one block; `view` has its length. Nobody sees it before `publish`."""

    info: BlockInfo
    view: memoryview


class ReplicaSpace:
    """Replicas in the host tier and on their way there. Owned by the node's event loop.

    Bound: `max_bytes`, those on their way included. When it is reached the coldest replicas leave;
    those that somebody reads stay, and a block for which there is then no room is a miss
    (NO_SPACE). Replicas that nobody reads any more leave by `tick`. One that is read again is
    worth keeping: `on_hot` gets it.

    An event sink for what leaves the host tier: whoever evicts a replica, it is forgotten here.
    """

    def __init__(
        self,
        replicas: Replicas,
        arrivals: Arrivals,
        heat: ReplicaHeat,
        max_bytes: int,
        on_hot: Callable[[Sequence[BlockKey]], None],
    ) -> None:
        self._replicas = replicas
        self._arrivals = arrivals
        self._heat = heat
        self._max_bytes = max_bytes
        self._on_hot = on_hot
        self._bytes_on_their_way = 0
        self.num_evicted = 0

    @property
    def max_bytes(self) -> int:
        return self._max_bytes

    @property
    def used_bytes(self) -> int:
        return self._heat.used_bytes + self._bytes_on_their_way

    def __len__(self) -> int:
        return len(self._heat)

    def reserve(self, infos: Iterable[BlockInfo]) -> list[Place]:
        """Places for blocks that are on their way. Those that get none are settled: somebody wrote
        them meanwhile, or there is no room.

        Give every place to `publish` or `give_back`, once.
        """
        by_length = groupby(infos, lambda info: info.length_bytes)
        return [
            place for length, equal in by_length for place in self._reserve(list(equal), length)
        ]

    def publish(self, places: Sequence[Place]) -> None:
        """They hold verified bytes: replicas from now on."""
        for place in places:
            self._bytes_on_their_way -= place.info.length_bytes
            self._heat.add(place.info.key, place.info.length_bytes)
        self._arrivals.arrived([place.info for place in places])

    def give_back(self, places: Sequence[Place]) -> None:
        """Nobody writes into them any more, and their bytes are not to be trusted."""
        self._bytes_on_their_way -= sum(place.info.length_bytes for place in places)
        self._replicas.host.abort([place.info.key for place in places])

    def read(self, keys: Sequence[BlockKey]) -> None:
        """Blocks were read, replicas or not."""
        if self._heat and (became_hot := self._heat.read(keys)):
            self._on_hot(became_hot)

    def tick(self) -> None:
        """Let go of the replicas that nobody reads any more."""
        self._evict(self._heat.cold())

    def _reserve(self, infos: list[BlockInfo], length_bytes: int) -> Iterator[Place]:
        """Blocks of one length. Room runs out from their tail."""
        room = self._make_room(length_bytes, len(infos))
        for info in infos[room:]:
            self._arrivals.settle(info.key, MissReason.NO_SPACE)
        host = self._replicas.host
        reserved = self._replicas.reserve([info.key for info in infos[:room]], length_bytes)
        slots = iter(reserved.slots)
        for info, outcome in zip(infos, reserved.outcomes, strict=False):
            match outcome:
                case ReserveOutcome.RESERVED:
                    self._bytes_on_their_way += length_bytes
                    yield Place(info, host.view(next(slots)))
                case ReserveOutcome.EXISTS:
                    self._arrivals.present(info.key)
                case ReserveOutcome.PENDING:
                    self._arrivals.settle(info.key, MissReason.PENDING)
                case _:
                    self._arrivals.settle(info.key, MissReason.NO_SPACE)

    def _make_room(self, length_bytes: int, count: int) -> int:
        """For how many of `count` blocks there is room, once the coldest replicas have left."""
        lacking_bytes = self.used_bytes + count * length_bytes - self._max_bytes
        while lacking_bytes > 0 and (victims := self._heat.coldest(lacking_bytes)):
            if not self._evict(victims):
                break
            lacking_bytes = self.used_bytes + count * length_bytes - self._max_bytes
        return min(max((self._max_bytes - self.used_bytes) // length_bytes, 0), count)

    def _evict(self, keys: list[BlockKey]) -> int:
        """Evict those of `keys` that nobody uses; returns how many."""
        if not keys:
            return 0
        evicted = self._replicas.host.evict(keys)
        self._heat.put_back(list(set(keys).difference(evicted)))
        self._replicas.evicted(TierKind.HOST, evicted)
        self.num_evicted += len(evicted)
        return len(evicted)


class HeatSink:
    """An `EventSink` through which `heat` learns what left the host tier, whoever evicted it."""

    def __init__(self, heat: ReplicaHeat) -> None:
        self._heat = heat

    def stored(self, tier: TierKind, keys: BlockKeys) -> None:
        pass

    def removed(self, tier: TierKind, keys: BlockKeys) -> None:
        if tier is TierKind.HOST and self._heat:
            self._heat.forget(keys)

    def cleared(self, tier: TierKind) -> None:
        if tier is TierKind.HOST:
            self._heat.clear()

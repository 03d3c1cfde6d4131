"""For tests: a store in memory that can fail, under the engine's thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from enum import Enum

from kvstore.core.ids import BlockHash, BlockKey
from kvstore.tiers.base import TierKind
from kvstore.tiers.device.cache import DeviceCache
from kvstore.tiers.device.copying import LayerSpan
from model_runner.kv_groups import KVGroup
from model_runner.misses import Miss
from model_runner.store import BlockRun, Fetched, LayerWriter, Published, Wanted
from model_runner.store_hits import longest_hit


class Fate(Enum):
    """What becomes of the store."""

    FINE = 1
    REFUSES = 2
    """Takes nothing: too much is on its way."""
    DIES = 3
    """In the middle: it takes and gives nothing any more."""
    BUSY = 4
    """Takes every other batch."""


@dataclass
class MemoryStore:
    """A connector that keeps real copies, and answers some steps later."""

    groups: Sequence[KVGroup]
    caches: Sequence[DeviceCache]
    fate: Fate = Fate.FINE
    delay_steps: int = 0
    dies_at_step: int = 10
    enabled: bool = True
    now: int = 0
    kept: dict[BlockKey, bytearray] = field(default_factory=dict)
    num_fetched: int = 0
    num_offered: int = 0
    """Batches."""
    num_followed: int = 0
    """Batches that were taken layer by layer."""
    _answers: list[tuple[int, Callable[[], None]]] = field(default_factory=list)

    @property
    def alive(self) -> bool:
        return self.fate is not Fate.DIES or self.now < self.dies_at_step

    def fetch(self, wanted: Wanted, done: Fetched) -> None:
        def answer() -> None:
            tiers = self._load(wanted)
            wanted.missed.extend([Miss.NEVER_STORED] * (len(wanted.hashes) - len(tiers)))
            done(tiers)

        self.later(answer)

    def publish(self, runs: Sequence[BlockRun], done: Published) -> bool:
        if not self._takes():
            return False

        def save() -> None:
            writer = _MemoryWriter(self, runs, done)
            writer.copy(set(range(self._num_layers)))
            writer.keep(frozenset())

        self.later(save)
        return True

    def follow(self, runs: Sequence[BlockRun], done: Published) -> LayerWriter | None:
        if not self._takes():
            return None
        self.num_followed += 1
        return _MemoryWriter(self, runs, done)

    def close(self) -> None:
        pass

    def answer(self) -> None:
        """Call back what is due; one step passes."""
        due = [answer for at, answer in self._answers if at <= self.now]
        self._answers = [one for one in self._answers if one[0] > self.now]
        self.now += 1
        for answer in due:
            answer()

    @property
    def idle(self) -> bool:
        return not self._answers

    def later(self, answer: Callable[[], None]) -> None:
        self._answers.append((self.now + self.delay_steps, answer))

    def key(self, group: int, block_hash: BlockHash) -> BlockKey:
        return BlockKey(self.groups[group].layout.fingerprint, block_hash)

    @property
    def _num_layers(self) -> int:
        return 1 + max(layer for group in self.groups for layer in group.layers)

    def _takes(self) -> bool:
        self.num_offered += 1
        return self.fate is not Fate.REFUSES and not (
            self.fate is Fate.BUSY and self.num_offered % 2
        )

    def _load(self, wanted: Wanted) -> list[TierKind]:
        hit = self._hit(wanted.hashes) if self.alive else 0
        for index, (group, cache) in enumerate(zip(self.groups, self.caches, strict=True)):
            needed = wanted.hashes[group.first_block(hit) : hit]
            found = [memoryview(self.kept[self.key(index, one)]) for one in needed]
            cache.import_blocks(wanted.block_ids[index][: len(found)], found)
        self.num_fetched += hit
        return [TierKind.HOST] * hit

    def _hit(self, hashes: Sequence[BlockHash]) -> int:
        windows = [i for i, group in enumerate(self.groups) if group.window_tokens is not None]
        leading = [i for i in range(len(self.groups)) if i not in windows] or windows
        return longest_hit(
            [self.groups[i] for i in windows],
            min(self._num_there(i, hashes) for i in leading),
            lambda window, end: self._num_there(windows[window], hashes[:end][::-1]),
        )

    def _num_there(self, group: int, hashes: Sequence[BlockHash]) -> int:
        there = [self.key(group, block_hash) in self.kept for block_hash in hashes]
        return there.index(False) if False in there else len(there)


class _MemoryWriter:
    """Copies each layer when it is told that it is there."""

    def __init__(self, store: MemoryStore, runs: Sequence[BlockRun], done: Published) -> None:
        self._store = store
        self._runs = runs
        self._done = done
        self._told: set[int] = set()
        self._copies = [
            [bytearray(store.groups[run.group].layout.block_bytes) for _ in run.hashes]
            for run in runs
        ]

    def layer_computed(self, layer: int) -> None:
        assert layer not in self._told
        self._told.add(layer)
        self.copy({layer})

    def finish(self, without: Set[BlockHash] = frozenset()) -> None:
        for run in self._runs:
            missing = set(self._store.groups[run.group].layers) - self._told
            assert not missing, f"nobody told that layers {missing} are computed"
        self._store.later(lambda: self.keep(without))

    def abandon(self) -> None:
        self._store.later(self._done)

    def copy(self, layers: Set[int]) -> None:
        for run, copies in zip(self._runs, self._copies, strict=True):
            cache, views = self._store.caches[run.group], [memoryview(copy) for copy in copies]
            for place, layer in enumerate(self._store.groups[run.group].layers):
                if layer in layers:
                    cache.export_layers(run.block_ids, LayerSpan(place, place + 1), views)

    def keep(self, without: Set[BlockHash]) -> None:
        for run, copies in zip(self._runs, self._copies, strict=True):
            for block_hash, copy in zip(run.hashes, copies, strict=True):
                if self._store.alive and block_hash not in without:
                    self._store.kept.setdefault(self._store.key(run.group, block_hash), copy)
        self._done()

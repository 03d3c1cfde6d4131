"""How an engine reaches the store: blocks in and out of the device tier, beside the computation."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from typing import Protocol

from kvstore.core.ids import BlockHash
from kvstore.tiers.base import TierKind
from model_runner.misses import Miss

Fetched = Callable[[Sequence[TierKind]], None]
"""Takes the tiers that the leading blocks came from: that many are in the device tier now."""

Published = Callable[[], None]
"""Called when blocks are in the store, or were given up: their memory may be used again."""


@dataclass(frozen=True, slots=True)
class BlockRun:
    """Blocks of one KV group: what they are called and where they are."""

    hashes: Sequence[BlockHash]
    block_ids: Sequence[int]
    group: int = 0
    """Index of the group, see `kv_groups`."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The full blocks of a request after those that are on the device, and where to put them."""

    hashes: Sequence[BlockHash]
    """In prefix order."""
    block_ids: Sequence[Sequence[int]]
    """For each KV group: a device block for each of `hashes`. In a group with a window only
    `min(len(hashes), window_blocks)`. Of n blocks that are loaded it gets the last ones, as many of
    n as the window has; they go into the first ones of these, in order."""
    first_block: int
    """How many blocks are on the device, before these."""
    num_tokens: int
    """Of the request: what is not loaded has to be computed up to here."""
    missed: list[Miss] = field(default_factory=list)
    """Filled by the connector before it calls back: why each of those after the loaded ones was
    not."""


class LayerWriter(Protocol):
    """Blocks that go to the store layer by layer, while a step computes them. Used by the engine's
    thread; no method waits or raises. It ends with `finish` or `abandon`, once."""

    def layer_computed(self, layer: int) -> None:
        """K and V of this layer (index in the model) are complete in all the blocks, or will be
        when the device has done what is queued on it. Layers come in any order, each once."""

    def finish(self, without: Set[BlockHash] = frozenset()) -> None:
        """All layers are computed, but what came of the blocks `without` must not become visible.
        Whoever gave the blocks hears `done` when they are stored."""

    def abandon(self) -> None:
        """The step failed: nothing of these blocks must become visible. `done` is called too."""


class StoreConnector(Protocol):
    """Copies blocks between the device tier and the store.

    `fetch`, `publish` and `follow` return at once and call back later, exactly once, from any
    thread. Until then the blocks belong to the connector. They never raise: whatever goes wrong
    with the store is a miss, or a block that is not published. A fetch calls back within its
    deadline, or soon after.
    """

    @property
    def enabled(self) -> bool:
        """False if there is no store to ask, and never will be."""

    def fetch(self, wanted: Wanted, done: Fetched) -> None:
        """Bring the leading blocks that the store has, as many as are cheaper to load than to
        compute, and as all KV groups have what the tokens after them see (see `store_hits`); the
        contents of the rest of `block_ids` are undefined afterwards. Blocks that another worker of
        this host is still publishing are taken layer by layer, as they come; those that it does not
        finish, or not in time, are misses."""

    def publish(self, runs: Sequence[BlockRun], done: Published) -> bool:
        """Put complete blocks into the store. False if too many are on their way: then `done` is
        not called."""

    def follow(self, runs: Sequence[BlockRun], done: Published) -> LayerWriter | None:
        """Put blocks into the store that the coming step completes. None if too many are on their
        way: then `done` is not called, and they may be offered to `publish` after the step. Until
        the step is over the blocks must have an owner besides the connector, which may give up
        before."""

    def close(self) -> None:
        """Publish what is on its way, for a bounded time. Idempotent."""


class NullStore:
    """For a worker without a node."""

    enabled = False

    def fetch(self, wanted: Wanted, done: Fetched) -> None:
        wanted.missed.extend([Miss.NO_STORE] * len(wanted.hashes))
        done([])

    def publish(self, runs: Sequence[BlockRun], done: Published) -> bool:
        return False

    def follow(self, runs: Sequence[BlockRun], done: Published) -> LayerWriter | None:
        return None

    def close(self) -> None:
        pass

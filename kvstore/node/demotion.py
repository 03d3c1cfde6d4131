"""Which blocks go to disk, and when."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

from kvstore.core.ids import BlockKey, RoutingKey, routing_key
from kvstore.node.config import DiskPolicy, NodeConfig
from kvstore.node.disk_queue import DiskQueue
from kvstore.node.replicas import Replicas

MAX_COUNTED = 131_072
"""Blocks whose uses are counted, by routing key; the one counted longest ago is forgotten first."""
QUEUED_SHARE = 0.5
"""Part of the host tier that may wait to be written to disk, and cannot be evicted meanwhile."""
BATCH_BLOCKS = 1_024
"""Blocks that one tick offers."""


@dataclass(frozen=True, slots=True)
class _Rule:
    eager: bool
    """Write as soon as there is room in the queue, not only under pressure."""
    guarded: bool
    """Eviction passes over what is yet to be written."""
    counts_uses: bool
    """Only what was used often enough is to be written."""


_RULES: Mapping[DiskPolicy, _Rule] = {
    "write-through": _Rule(eager=True, guarded=False, counts_uses=False),
    "write-back": _Rule(eager=False, guarded=True, counts_uses=False),
    "selective": _Rule(eager=True, guarded=True, counts_uses=True),
}


class Demotion:
    """Decides what is offered to the disk queue. Owned by the node's event loop.

    - write-through: every block, when it is committed.
    - write-back: blocks about to leave the host tier: when it is used above `start_bytes`, the
      least recently used ones are written until no more than `target_bytes` are on no disk, so that
      eviction finds clean ones. Eviction passes over the others, and asks for them to be written.
      A node that is killed loses what it had not written; one that stops writes it.
    - selective: blocks that were acquired `min_uses` times.

    What the queue has no room for is offered again by later ticks. A block that leaves the host
    tier before that is lost to the disk, and counted; so is one that has to go because nothing else
    is left to evict (see `unguarded`). Bound: blocks in the host tier.
    """

    def __init__(
        self,
        replicas: Replicas,
        queue: DiskQueue,
        policy: DiskPolicy,
        *,
        min_uses: int,
        start_bytes: int,
        target_bytes: int,
    ) -> None:
        self._replicas = replicas
        self.queue = queue
        self._rule = _RULES[policy]
        self._min_uses = min_uses
        self._start_bytes = start_bytes
        self._target_bytes = target_bytes
        self._due: dict[BlockKey, int] = {}
        """Blocks that are yet to be offered, least recently used first, with their bytes."""
        self._due_bytes = 0
        self._asked: dict[BlockKey, None] = {}
        """Those that eviction passed over."""
        self._uses: dict[RoutingKey, int] = {}
        self._guarding = self._rule.guarded
        self._num_lost = 0

    @property
    def num_skipped(self) -> int:
        """Blocks that are, or were when they left, in the host tier alone because the disk fell
        behind."""
        return self._num_lost + (len(self._due) if self._rule.eager else 0)

    @property
    def guards_any(self) -> bool:
        return self._rule.guarded and bool(self._due)

    def committed(self, keys: Sequence[BlockKey]) -> None:
        """New blocks in the host tier."""
        if self._rule.counts_uses:
            keys = [key for key in keys if self._used_enough(key)]
        self._add(keys)

    def used(self, keys: Sequence[BlockKey]) -> None:
        """Blocks of the host tier were acquired."""
        if self._rule.counts_uses:
            self._add([key for key in keys if self._count(key) == self._min_uses])
        elif not self._rule.eager and self._due:
            for key in keys:
                if (size := self._due.pop(key, None)) is not None:
                    self._due[key] = size

    def guard(self, key: BlockKey) -> bool:
        """For `AddressableTier.guard`."""
        if not self._guarding or key not in self._due:
            return False
        self._asked[key] = None
        return True

    @contextmanager
    def unguarded(self) -> Iterator[None]:
        """Meanwhile eviction may take what is not on disk."""
        self._guarding = False
        try:
            yield
        finally:
            self._guarding = self._rule.guarded

    def write_asked(self, needed_bytes: int) -> None:
        """Offer what eviction passed over when it wanted that many bytes. It looked at more, but
        first at those whose turn it is."""
        if self._asked:
            asked, self._asked = self._asked, {}
            self._offer(list(self._first(asked, needed_bytes)))

    def left(self, keys: Iterable[BlockKey]) -> None:
        """Blocks are in the host tier no more."""
        self._num_lost += self._forget_all(keys)

    def removed(self, keys: Iterable[BlockKey]) -> None:
        """Blocks are not wanted any more."""
        self._forget_all(keys)

    def tick(self) -> None:
        """Offer the next batch of what is to be written now."""
        asked, self._asked = self._asked, {}
        wanted = dict.fromkeys([*asked, *self._due]) if asked else self._due
        if self._rule.eager:
            self._offer(list(self._first(wanted, self._due_bytes)))
        elif self._replicas.host.statistics().used_bytes > self._start_bytes:
            self._offer(list(self._first(wanted, self._due_bytes - self._target_bytes)))

    async def stop(self, flush_s: float) -> None:
        """Write all that is to be written, for at most `flush_s`; the rest is lost to the disk."""
        loop = asyncio.get_running_loop()
        end = loop.time() + flush_s
        while self._due and loop.time() < end:
            num_due = len(self._due)
            self._offer(list(islice(self._due, BATCH_BLOCKS)))
            if len(self._due) == num_due and self.queue.idle:
                break  # larger than the queue
            await self.queue.wait_idle(end - loop.time())
        self._num_lost += await self.queue.stop(end - loop.time())
        self.left(list(self._due))

    def _first(self, keys: Iterable[BlockKey], needed_bytes: int) -> Iterator[BlockKey]:
        """The leading ones of those that are due, until they make up so many bytes."""
        due = (key for key in keys if key in self._due)
        for key in islice(due, BATCH_BLOCKS):
            if needed_bytes <= 0:
                break
            needed_bytes -= self._due[key]
            yield key

    def _add(self, keys: Sequence[BlockKey]) -> None:
        new = [key for key in keys if key not in self._due and not self._replicas.on_disk(key)]
        if not new:
            return
        sizes = self.queue.offer(new) if self._rule.eager else self._sizes(new)
        self._due.update(sizes)
        self._due_bytes += sum(sizes.values())

    def _offer(self, keys: Sequence[BlockKey]) -> None:
        """Those that there is room for are due no more; the others keep their place."""
        if keys and self.queue.room_bytes > 0:
            refused = self.queue.offer(keys)
            self._forget_all(key for key in keys if key not in refused)

    def _sizes(self, keys: Sequence[BlockKey]) -> dict[BlockKey, int]:
        residents = self._replicas.host.hold(keys)
        sizes = {
            key: resident.slot.length_bytes
            for key, resident in zip(keys, residents, strict=True)
            if resident is not None
        }
        self._replicas.host.release(sizes)
        return sizes

    def _forget_all(self, keys: Iterable[BlockKey]) -> int:
        """Returns how many of them were due."""
        sizes = [size for key in keys if (size := self._due.pop(key, None)) is not None]
        self._due_bytes -= sum(sizes)
        return len(sizes)

    def _used_enough(self, key: BlockKey) -> bool:
        return self._uses.get(routing_key(key.hash), 0) >= self._min_uses

    def _count(self, key: BlockKey) -> int:
        name = routing_key(key.hash)
        uses = self._uses.pop(name, 0) + 1
        self._uses[name] = uses
        if len(self._uses) > MAX_COUNTED:
            del self._uses[next(iter(self._uses))]
        return uses


def make_demotion(replicas: Replicas, executor: Executor, config: NodeConfig) -> Demotion:
    """With its queue, for a node of that configuration."""
    capacity_bytes = replicas.host.statistics().capacity_bytes
    start_share = (config.low_watermark + config.high_watermark) / 2
    return Demotion(
        replicas,
        DiskQueue(replicas, executor, int(capacity_bytes * QUEUED_SHARE)),
        config.disk_policy,
        min_uses=config.disk_min_uses,
        start_bytes=int(capacity_bytes * start_share),
        target_bytes=int(capacity_bytes * config.low_watermark),
    )

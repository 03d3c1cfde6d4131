"""Blocks that stay in the host tier: for a time, or until they are unpinned."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count

from kvstore.core.ids import BlockKey
from kvstore.core.ports import Clock
from kvstore.node.replicas import Replicas
from kvstore.tiers.base import MissReason, Resident

_STALE_MAX = 1_024
"""Ends of pins that were changed meanwhile and are still in line, beyond as many as there are
pins."""


@dataclass
class _Pin:
    size_bytes: int
    serial: int
    """Of its latest end; earlier ones that are still in line are stale."""


class Pins:
    """A pin is a reference on a resident block, which therefore cannot be evicted.

    A soft pin ends after its time, a hard one (no time) when it is unpinned; both end with the
    block, when it is removed or found corrupt. Pins belong to the tenant whose block it is, and
    outlive sessions; they do not outlive the node. Bound: `max_bytes` of slots; what is pinned
    beyond that is refused. Owned by the node's event loop.
    """

    def __init__(self, replicas: Replicas, clock: Clock, max_bytes: int) -> None:
        self._replicas = replicas
        self._clock = clock
        self._max_bytes = max_bytes
        self._pins: dict[BlockKey, _Pin] = {}
        self._ends: list[tuple[float, int, BlockKey]] = []
        self._serials = count()
        self.pinned_bytes = 0

    def pin(self, keys: Sequence[BlockKey], ttl_s: float | None) -> list[MissReason | None]:
        """Pin what is resident, or change the pin that it has; NO_SPACE for what is too much.

        Keys that are not resident are refused with the reason why they are not.
        """
        residents = self._replicas.host.hold(keys)
        refused = []
        reasons: list[MissReason | None] = []
        for key, resident in zip(keys, residents, strict=True):
            if resident is None:
                reasons.append(self._replicas.why_absent(key))
            elif key in self._pins:
                refused.append(key)  # one reference is enough
                reasons.append(None)
            elif self._take(key, resident):
                reasons.append(None)
            else:
                refused.append(key)
                reasons.append(MissReason.NO_SPACE)
        self._replicas.host.release(refused)
        self._set_ends([k for k, miss in zip(keys, reasons, strict=True) if miss is None], ttl_s)
        return reasons

    def unpin(self, keys: Iterable[BlockKey]) -> int:
        """Returns how many were pinned. Also for blocks that were dropped."""
        pinned = [key for key in dict.fromkeys(keys) if key in self._pins]
        for key in pinned:
            self.pinned_bytes -= self._pins.pop(key).size_bytes
        self._replicas.host.release(pinned)
        return len(pinned)

    def expire(self) -> None:
        now = self._clock()
        ended = []
        while self._ends and self._ends[0][0] <= now:
            _, serial, key = heapq.heappop(self._ends)
            if self._is_end(serial, key):
                ended.append(key)
        self.unpin(ended)

    def __len__(self) -> int:
        return len(self._pins)

    def _take(self, key: BlockKey, resident: Resident) -> bool:
        size = self._replicas.host.slot_bytes(resident.slot)
        if self.pinned_bytes + size > self._max_bytes:
            return False
        self.pinned_bytes += size
        self._pins[key] = _Pin(size, -1)
        return True

    def _set_ends(self, keys: Iterable[BlockKey], ttl_s: float | None) -> None:
        end_s = None if ttl_s is None else self._clock() + ttl_s
        for key in keys:
            pin = self._pins[key]
            pin.serial = next(self._serials)
            if end_s is not None:
                heapq.heappush(self._ends, (end_s, pin.serial, key))
        if len(self._ends) > 2 * len(self._pins) + _STALE_MAX:
            self._ends = [end for end in self._ends if self._is_end(*end[1:])]
            heapq.heapify(self._ends)

    def _is_end(self, serial: int, key: BlockKey) -> bool:
        pin = self._pins.get(key)
        return pin is not None and pin.serial == serial

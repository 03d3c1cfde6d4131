"""Where in a range of memory each block goes. Pure: numbers only, no memory is touched.

The range is cut into slabs of one size. A slab is handed to one size class, whose slots it then
holds, and goes back to the common pool when its last slot is freed, so that one class can take over
the memory of another.

    slab 0 (class 2 MiB)        slab 1 (class 5 MiB)        slab 2 (pool)
    ┌──────┬──────┬──────┬──┐   ┌────────────┬──────────┐   ┌───────────────────────┐
    │ used │ free │ used │  │   │    used    │  (tail)  │   │                       │
    └──────┴──────┴──────┴──┘   └────────────┴──────────┘   └───────────────────────┘
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from kvstore.core.errors import InvalidArgumentError
from kvstore.tiers.memory import ALIGNMENT, round_up

K = TypeVar("K")

_SLAB_BYTES_MIN = 4 << 20
_SLAB_BYTES_MAX = 64 << 20
_SLABS_WANTED = 16


def class_bytes(length_bytes: int) -> int:
    """`length_bytes` rounded up to its size class: multiples of 4 KiB, eight classes an octave
    above 32 KiB (at most 12.5 % more)."""
    assert length_bytes > 0
    octave = (length_bytes - 1).bit_length() - 1
    return round_up(length_bytes, max(ALIGNMENT, 1 << max(octave - 3, 0)))


def default_slab_bytes(capacity_bytes: int) -> int:
    """A sixteenth of the range, within [4 MiB, 64 MiB], stretched so that slabs fill the range."""
    wanted = min(max(capacity_bytes // _SLABS_WANTED, _SLAB_BYTES_MIN), _SLAB_BYTES_MAX)
    count = max(capacity_bytes // wanted, 1)
    return capacity_bytes // count // ALIGNMENT * ALIGNMENT


@dataclass(slots=True)
class _Slab(Generic[K]):
    """`owners[i]` holds slot i. Slots from `len(owners)` on were never used in this life of the
    slab."""

    index: int
    class_bytes: int
    slots: int
    owners: list[K | None] = field(default_factory=list)
    freed: list[int] = field(default_factory=list)

    @property
    def live(self) -> int:
        return len(self.owners) - len(self.freed)

    def take(self, owner: K) -> int:
        if self.freed:
            slot = self.freed.pop()
            self.owners[slot] = owner
            return slot
        self.owners.append(owner)
        return len(self.owners) - 1


class SlabAllocator(Generic[K]):
    """Slots in [0, capacity_bytes), each with an owner. `allocate` and `free` are O(1).

    Not thread-safe: owned by one tier, under its lock.
    """

    def __init__(self, capacity_bytes: int, slab_bytes: int | None = None) -> None:
        self.capacity_bytes = capacity_bytes
        self.slab_bytes = default_slab_bytes(capacity_bytes) if slab_bytes is None else slab_bytes
        assert 0 < self.slab_bytes <= capacity_bytes
        assert self.slab_bytes % ALIGNMENT == 0
        self.used_bytes = 0
        """Live slots, each with the bytes of its class."""
        self.front_bytes = 0
        """Nothing beyond it was ever allocated."""
        self._pool = list(range(capacity_bytes // self.slab_bytes - 1, -1, -1))
        self._slabs: dict[int, _Slab[K]] = {}
        self._partial: dict[int, dict[int, _Slab[K]]] = {}
        """By class: slabs with a free slot, by index."""

    def check_fits(self, length_bytes: int) -> None:
        """Raises InvalidArgumentError if a block of that length can never get a slot."""
        if not 0 < length_bytes <= self.slab_bytes:
            raise InvalidArgumentError(
                f"a block of {length_bytes} bytes does not fit in a slab of {self.slab_bytes} "
                f"bytes (host tier of {self.capacity_bytes} bytes); make the host tier larger or "
                "the blocks smaller"
            )

    def allocate(self, length_bytes: int, owner: K) -> int | None:
        """Offset of a slot, aligned to 4 KiB; None if no slab has room for this class."""
        size = self.slot_bytes(length_bytes)
        partial = self._partial.setdefault(size, {})
        if partial:
            _, slab = partial.popitem()
        elif self._pool:
            slab = _Slab(self._pool.pop(), size, self.slab_bytes // size)
            self._slabs[slab.index] = slab
            self.front_bytes = max(self.front_bytes, (slab.index + 1) * self.slab_bytes)
        else:
            return None
        slot = slab.take(owner)
        if slab.live < slab.slots:
            partial[slab.index] = slab
        self.used_bytes += size
        return slab.index * self.slab_bytes + slot * size

    def free(self, offset: int) -> int:
        """Give back what `allocate` returned; the bytes of the slot."""
        slab, slot = self._locate(offset)
        slab.owners[slot] = None
        slab.freed.append(slot)
        self.used_bytes -= slab.class_bytes
        partial = self._partial[slab.class_bytes]
        partial[slab.index] = slab
        if slab.live == 0:
            del partial[slab.index]
            del self._slabs[slab.index]
            self._pool.append(slab.index)
        return slab.class_bytes

    def same_class(self, offset: int, length_bytes: int) -> bool:
        """Whether freeing the slot at `offset` would make room for a block of that length."""
        return self._locate(offset)[0].class_bytes == self.slot_bytes(length_bytes)

    def slots_per_slab(self, length_bytes: int) -> int:
        return self.slab_bytes // self.slot_bytes(length_bytes)

    def owner(self, offset: int) -> K:
        slab, slot = self._locate(offset)
        owner = slab.owners[slot]
        assert owner is not None
        return owner

    def size_at(self, offset: int) -> int:
        """Bytes of the slot at `offset`."""
        return self._locate(offset)[0].class_bytes

    def neighbours(self, offset: int) -> list[K]:
        """Owners of all live slots in the slab of `offset`, its own included."""
        return [owner for owner in self._locate(offset)[0].owners if owner is not None]

    def slot_bytes(self, length_bytes: int) -> int:
        """Bytes that a block of that length takes up. Never more than a slab, however the rounding
        goes."""
        assert 0 < length_bytes <= self.slab_bytes
        return min(class_bytes(length_bytes), self.slab_bytes)

    def _locate(self, offset: int) -> tuple[_Slab[K], int]:
        index, within = divmod(offset, self.slab_bytes)
        slab = self._slabs[index]
        slot, rest = divmod(within, slab.class_bytes)
        assert rest == 0, "no slot begins there"
        assert slot < len(slab.owners), "no slot begins there"
        assert slab.owners[slot] is not None, "that slot is free"
        return slab, slot

    def __repr__(self) -> str:
        used = f"{self.used_bytes}/{self.capacity_bytes} bytes"
        return f"SlabAllocator({used}, {len(self._pool)} free slabs)"

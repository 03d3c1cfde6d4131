"""What a host tier knows of each slot, in columns: some 40 bytes a block, where an object for each
would take 300."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from functools import partial

from kvstore.core.ids import BlockHash, BlockKey, LayoutFingerprint
from kvstore.tiers.base import Resident, Slot


class SlotRows:
    """One row for each life of a slot, from its allocation to its end. Row numbers are used again.

    Not thread-safe: owned by one tier, under its lock.
    """

    def __init__(self) -> None:
        self.keys: list[BlockKey] = []
        """What each slot is, or is to be. One object for each key, which all books share."""
        self.references = array("I")
        """Of readers; of a writer too where the slot was set aside."""
        self._offsets = array("Q")
        self._lengths_bytes = array("I")
        self._generations = array("Q")
        self._checksums = array("I")
        self._free: list[int] = []

    def next(self) -> int:
        """The row that `add` fills next."""
        return self._free[-1] if self._free else len(self.keys)

    def add(self, key: BlockKey, slot: Slot) -> None:
        offset, length_bytes, generation = slot
        if self._free:
            row = self._free.pop()
            self.keys[row] = key
            self.references[row] = 0
            self._offsets[row] = offset
            self._lengths_bytes[row] = length_bytes
            self._generations[row] = generation
        else:
            self.keys.append(key)
            self.references.append(0)
            self._offsets.append(offset)
            self._lengths_bytes.append(length_bytes)
            self._generations.append(generation)
            self._checksums.append(0)

    def remove(self, row: int) -> None:
        self.keys[row] = _NO_KEY
        self._free.append(row)

    def commit(self, row: int, length_bytes: int, checksum: int) -> None:
        assert 0 < length_bytes <= self._lengths_bytes[row]
        self._lengths_bytes[row] = length_bytes
        self._checksums[row] = checksum

    def offset(self, row: int) -> int:
        return self._offsets[row]

    def length_bytes(self, row: int) -> int:
        return self._lengths_bytes[row]

    def checksum(self, row: int) -> int:
        return self._checksums[row]

    def slot(self, row: int) -> Slot:
        return Slot(self._offsets[row], self._lengths_bytes[row], self._generations[row])

    def residents(self, rows: Sequence[int]) -> list[Resident]:
        """One for each row. Column by column, without a step of Python for each block."""
        slots = map(
            _new_slot,
            zip(
                map(self._offsets.__getitem__, rows),
                map(self._lengths_bytes.__getitem__, rows),
                map(self._generations.__getitem__, rows),
                strict=True,
            ),
        )
        checksums = map(self._checksums.__getitem__, rows)
        return list(map(_new_resident, zip(slots, checksums, strict=True)))

    def __len__(self) -> int:
        return len(self.keys) - len(self._free)


_new_slot: Callable[[tuple[int, int, int]], Slot] = partial(tuple.__new__, Slot)
_new_resident: Callable[[tuple[Slot, int]], Resident] = partial(tuple.__new__, Resident)
_NO_KEY = BlockKey(LayoutFingerprint(b""), BlockHash(b""))

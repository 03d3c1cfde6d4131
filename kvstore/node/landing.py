"""Bytes that come over the network: where they may land, and what arrived."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from kvstore.core.errors import ChecksumError, InvalidArgumentError, ReservationExpiredError
from kvstore.tiers.base import Slot
from kvstore.tiers.memory import copy_with_checksum


class Landing:
    """The slots of one reservation, for writers without a mapping of the arena.

    Threads that receive call `write`; the node's event loop calls the rest. A block is closed
    before its slot can get another life, and closing waits for the piece that is being copied: so
    no byte lands in a slot that is somebody else's. That wait is the copy of one piece, well below
    a millisecond.
    """

    def __init__(
        self, slots: Sequence[Slot], block_bytes: int, view: Callable[[Slot], memoryview]
    ) -> None:
        self._slots = slots
        self._block_bytes = block_bytes
        self._view = view
        self._lock = threading.Lock()
        self._open = set(range(len(slots)))
        self._arrived: dict[int, _Arrived] = {}

    def write(self, index: int, start_byte: int, data: memoryview) -> None:
        """Copy one piece in. Raises ReservationExpiredError or InvalidArgumentError, and then
        nothing was written."""
        with self._lock:
            before = self._check(index, start_byte, data.nbytes)
            view = self._view(self._slots[index])[start_byte : start_byte + data.nbytes]
            crc = copy_with_checksum(view, data, before)
            self._arrived[index] = _Arrived(start_byte + data.nbytes, crc)

    def commit(
        self,
        indices: Sequence[int],
        lengths_bytes: Sequence[int],
        checksums: Sequence[int],
        *,
        mapped: bool,
    ) -> None:
        """No byte lands in these blocks any more; all of them arrived as they are committed.

        Raises ChecksumError if one did not: then they stay open, to be written again. A block of
        which nothing arrived counts as written in place if its writer has the arena `mapped`.
        """
        with self._lock:
            if self._arrived or not mapped:
                for committed in zip(indices, lengths_bytes, checksums, strict=True):
                    self._check_arrived(*committed, mapped=mapped)
            self._open.difference_update(indices)

    def close(self) -> None:
        """No byte lands in any block any more."""
        with self._lock:
            self._open.clear()

    def _check_arrived(self, index: int, length_bytes: int, checksum: int, *, mapped: bool) -> None:
        arrived = self._arrived.get(index)
        if arrived is None and mapped:
            return
        num_bytes = arrived.num_bytes if arrived else 0
        if num_bytes != length_bytes:
            raise ChecksumError(
                f"block {index}: {length_bytes} bytes are committed and {num_bytes} arrived; "
                "write it again"
            )
        if arrived is not None and arrived.crc != checksum:
            raise ChecksumError(
                f"block {index}: the bytes that arrived are not those of its checksum; "
                "write it again"
            )

    def _check(self, index: int, start_byte: int, length_bytes: int) -> int:
        """The CRC-32C of what is there before the piece."""
        if not 0 <= index < len(self._slots):
            raise InvalidArgumentError(f"index {index} is no block of the reservation")
        if index not in self._open:
            raise ReservationExpiredError(
                f"block {index} was committed, or its reservation ended, before this call; "
                "reserve again"
            )
        if start_byte + length_bytes > self._block_bytes:
            raise InvalidArgumentError(
                f"start_byte {start_byte} + {length_bytes} bytes of data pass the end of the block "
                f"({self._block_bytes} bytes)"
            )
        if start_byte == 0:
            return 0
        arrived = self._arrived.get(index)
        if arrived is None or arrived.num_bytes != start_byte:
            raise InvalidArgumentError(
                f"start_byte {start_byte}: pieces of a block come in order, and "
                f"{arrived.num_bytes if arrived else 0} bytes arrived"
            )
        return arrived.crc


class _Arrived:
    __slots__ = ("crc", "num_bytes")

    def __init__(self, num_bytes: int, crc: int) -> None:
        self.num_bytes = num_bytes
        self.crc = crc

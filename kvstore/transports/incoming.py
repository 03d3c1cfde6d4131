"""A block as it arrives, whatever brings it."""

from __future__ import annotations

from kvstore.core.errors import ProtocolError
from kvstore.tiers.base import MissReason
from kvstore.tiers.memory import copy_with_checksum
from kvstore.transports.base import BulkRead


class Incoming:
    """Pieces come in order; each is copied and checksummed in one pass. Not thread-safe."""

    __slots__ = ("_crc", "_into", "_num_bytes", "_want_crc")

    def __init__(self, block: BulkRead) -> None:
        self._into = block.into.cast("B")
        self._want_crc = block.checksum
        self._num_bytes = 0
        self._crc = 0

    def take(self, start_byte: int, data: memoryview) -> None:
        """Raises ProtocolError for bytes that do not follow those before."""
        end = start_byte + data.nbytes
        if start_byte != self._num_bytes or end > self._into.nbytes:
            raise ProtocolError(
                f"bytes [{start_byte}, {end}) of a block of {self._into.nbytes} came after byte "
                f"{self._num_bytes}"
            )
        self._crc = copy_with_checksum(self._into[start_byte:end], data, self._crc)
        self._num_bytes = end

    def outcome(self, unfinished: MissReason) -> MissReason | None:
        """None if all is there and right; `unfinished` is why not, if it is not all there."""
        if self._num_bytes < self._into.nbytes:
            return unfinished
        return None if self._crc == self._want_crc else MissReason.CORRUPT

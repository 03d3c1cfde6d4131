"""Turns blocks into the buffers of one vectored write."""

from __future__ import annotations

from kvstore.tiers.disk.io import BUFFERS_MAX
from kvstore.tiers.disk.record import HEADER_BYTES, RecordHeader, record_bytes
from kvstore.tiers.memory import ALIGNMENT, aligned_buffer, copy_bytes, is_aligned, round_up

_BUFFERS_PER_RECORD_MAX = 3


class Staging:
    """Aligned memory for what cannot be written from where it lies.

    Page-aligned payloads, such as those in the arena, are written in place; only their headers and
    the tails that need padding are staged:

        staged header │ payload, in place │ staged tail

    Owned by one writer. The buffers of a run are valid until `clear`, and while the payloads are.
    """

    def __init__(self, size_bytes: int) -> None:
        self._memory = aligned_buffer(size_bytes)
        self._used = 0
        self.buffers: list[memoryview] = []
        self.run_bytes = 0
        """Of all records in `buffers`."""

    def clear(self) -> None:
        self._used = 0
        self.buffers = []
        self.run_bytes = 0

    def add(self, data: memoryview, header: RecordHeader) -> bool:
        """Append a record to the run; False if it has no room any more. An empty run takes any
        record."""
        in_place = is_aligned(data)
        staged = _staged_bytes(data.nbytes, in_place=in_place)
        if not self._has_room(staged):
            return False
        encoded = header.encode()
        unit = self._take(HEADER_BYTES)
        unit[: len(encoded)] = encoded
        unit[len(encoded) :] = bytes(HEADER_BYTES - len(encoded))
        self.buffers.append(unit)
        whole = data.nbytes // ALIGNMENT * ALIGNMENT if in_place else 0
        if whole:
            self.buffers.append(data[:whole])
        if whole < data.nbytes:
            self._stage(data[whole:])
        self.run_bytes += record_bytes(data.nbytes)
        return True

    def _has_room(self, staged: int) -> bool:
        if not self.buffers and staged > len(self._memory):
            self._memory = aligned_buffer(staged)
        return (
            self._used + staged <= len(self._memory)
            and len(self.buffers) + _BUFFERS_PER_RECORD_MAX <= BUFFERS_MAX
        )

    def _stage(self, data: memoryview) -> None:
        area = self._take(round_up(data.nbytes))
        copy_bytes(area[: data.nbytes], data)
        area[data.nbytes :] = bytes(area.nbytes - data.nbytes)
        self.buffers.append(area)

    def _take(self, length: int) -> memoryview:
        area = self._memory[self._used : self._used + length]
        self._used += length
        return area


def _staged_bytes(length_bytes: int, *, in_place: bool) -> int:
    payload = length_bytes % ALIGNMENT if in_place else length_bytes
    return HEADER_BYTES + round_up(payload)

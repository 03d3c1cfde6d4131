"""The log: segments in order, of which the newest takes appends and the oldest is given up
first."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from kvstore.tiers.base import Block
from kvstore.tiers.disk.record import RecordHeader, record_bytes
from kvstore.tiers.disk.segment import Segment
from kvstore.tiers.disk.staging import Staging

_STAGING_BYTES = 8 << 20


@dataclass(slots=True)
class Record:
    """Where a block lies on disk. One per block in the index."""

    segment: Segment
    offset: int
    length_bytes: int
    checksum: int
    read: bool = False
    """Whether it was loaded since it was written: then it is worth copying forward, once."""


class SegmentLog:
    """Append-only storage of records in `folder`. Not thread-safe: one writer at a time.

    Bound: `used_bytes` stays within `limit_bytes` for new records. The segment's worth of bytes
    between that and the capacity is room to copy survivors into before the segment that they leave
    is removed. Raises OSError; what was appended before stays valid.
    """

    def __init__(
        self, folder: Path, capacity_bytes: int, segment_bytes: int, *, direct: bool
    ) -> None:
        self.folder = folder
        self.capacity_bytes = capacity_bytes
        self.segment_bytes = segment_bytes
        self.limit_bytes = capacity_bytes - segment_bytes
        self.direct = direct
        self.segments: deque[Segment] = deque()
        self.used_bytes = 0
        self.sequence = 0
        """Of the last record written."""
        self.durable_sequence = 0
        """All records up to here survive a power failure."""
        self._active: Segment | None = None
        self._next_number = 0
        self._staging = Staging(_STAGING_BYTES)

    def adopt(self, segments: Iterable[Segment], sequence: int, active: Segment | None) -> None:
        """Take over the segments of an earlier life; `active`, the newest, is written on."""
        self.segments.extend(segments)
        self.used_bytes = sum(segment.end for segment in self.segments)
        if self.segments:
            self._next_number = self.segments[-1].number + 1
            self.segments[-1].sync()  # the others were, before they had a successor
        self._active = active
        self.sequence = self.durable_sequence = sequence

    def has_room(self, length_bytes: int) -> bool:
        return self.used_bytes + record_bytes(length_bytes) <= self.limit_bytes

    def append(self, blocks: list[Block], start: int, limit_bytes: int) -> list[Record]:
        """Write as many of `blocks[start:]` as one call takes, at least one; used bytes stay within
        `limit_bytes`."""
        segment = self._writable(record_bytes(blocks[start].data.nbytes))
        room = min(limit_bytes - self.used_bytes, self.segment_bytes - segment.end)
        try:
            records = self._stage_run(segment, islice(blocks, start, None), room)
            assert self.used_bytes + self._staging.run_bytes <= self.capacity_bytes
            segment.append(self._staging.buffers)
            self.used_bytes += self._staging.run_bytes
        finally:
            self._staging.clear()
        segment.keys += [block.key for block in islice(blocks, start, start + len(records))]
        self.sequence += len(records)
        return records

    def _stage_run(self, segment: Segment, blocks: Iterable[Block], room: int) -> list[Record]:
        """The first block goes in whatever the room: `_writable` found it a segment."""
        records: list[Record] = []
        for block in blocks:
            offset = segment.end + self._staging.run_bytes
            length = block.data.nbytes
            sequence = self.sequence + len(records) + 1
            fits = self._staging.run_bytes + record_bytes(length) <= room or not records
            if not fits or not self._staging.add(
                block, RecordHeader(block.key, length, block.checksum, sequence)
            ):
                break
            records.append(Record(segment, offset, length, block.checksum))
        return records

    def _writable(self, needed_bytes: int) -> Segment:
        """A segment with that much room; an empty one takes a record of any size."""
        active = self._active
        if active and active.end and active.end + needed_bytes > self.segment_bytes:
            self.seal()
            active = None
        if active is None:
            active = Segment.create(self.folder, self._next_number, direct=self.direct)
            self._next_number += 1
            self.segments.append(active)
            self._active = active
        return active

    def seal(self) -> None:
        """The next append starts a new segment."""
        self.sync()
        self._active = None

    def sync(self) -> None:
        """Make durable all that was appended."""
        if self._active is not None:
            self._active.sync()
        self.durable_sequence = self.sequence

    def retire_oldest(self) -> None:
        segment = self.segments[0]
        segment.retire()
        self.segments.popleft()
        self.used_bytes -= segment.end
        if segment is self._active:
            self._active = None

    def close(self) -> None:
        for segment in self.segments:
            segment.close()
        self.segments.clear()

    def survivor_bytes_max(self) -> int:
        """Of the oldest segment, so that removing it frees at least half of it."""
        return min(self.segments[0].end, self.segment_bytes) // 2

"""The log: segments in order, of which the newest takes appends and the oldest is given up
first."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from kvstore.tiers.base import BlockInfo
from kvstore.tiers.disk.record import Encoded, RecordHeader, record_bytes
from kvstore.tiers.disk.segment import Segment
from kvstore.tiers.disk.staging import Staging
from kvstore.tiers.disk.summary import pack_row, summary_bytes

_STAGING_BYTES = 8 << 20


@dataclass(slots=True)
class Record:
    """Where a block lies on disk. One per block in the index."""

    segment: Segment
    offset: int
    length_bytes: int
    checksum: int
    encoded: Encoded | None = None
    read: bool = False
    """Whether it was loaded since it was written: then it is worth copying forward, once."""

    @property
    def stored(self) -> Encoded:
        """What lies on disk."""
        return self.encoded or Encoded(self.length_bytes, self.checksum)


@dataclass(frozen=True, slots=True)
class Payload:
    """What is to be written of a block."""

    block: BlockInfo
    """As it comes back."""
    data: memoryview
    encoded: Encoded | None
    """What `data` is; None if it is the block itself."""


class SegmentLog:
    """Append-only storage of records in `folder`. Not thread-safe: one writer at a time.

    Bound: `used_bytes` stays within `limit_bytes` for new records. The segment's worth of bytes
    between that and the capacity is room to copy survivors into before the segment that they leave
    is given up. Raises OSError; what was appended before stays valid.

    The file of a segment that was given up becomes the next segment. Until that is full, its bytes
    are on disk beside the used ones; they fit into the same segment's worth.
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
        self._spare: Segment | None = None
        self._next_number = 0
        self._staging = Staging(_STAGING_BYTES)

    def adopt(self, segments: Iterable[Segment], sequence: int, active: Segment | None) -> None:
        """Take over the segments of an earlier life; `active`, the newest, is written on."""
        self.segments.extend(segments)
        self.used_bytes = sum(s.end + s.summary_bytes for s in self.segments)
        if self.segments:
            self._next_number = self.segments[-1].number + 1
            self.segments[-1].sync()  # the others were, before they had a successor
        self._active = active
        self.sequence = self.durable_sequence = sequence

    @property
    def file_bytes(self) -> int:
        """Of all files: the used ones, and what is there to be written over."""
        unused = self._spare.file_bytes if self._spare else 0
        if self._active:
            unused += self._active.file_bytes - self._active.end
        return self.used_bytes + unused

    def has_room(self, length_bytes: int) -> bool:
        needed_bytes = record_bytes(length_bytes)
        if self._active:
            needed_bytes += summary_bytes(len(self._active.keys) + 1) - self._active.summary_bytes
        return self.used_bytes + needed_bytes <= self.limit_bytes

    def append(self, payloads: list[Payload], start: int, limit_bytes: int) -> list[Record]:
        """Write as many of `payloads[start:]` as one call takes, at least one; used bytes stay
        within `limit_bytes`."""
        segment = self._writable(record_bytes(payloads[start].data.nbytes))
        room = min(limit_bytes - self.used_bytes, self.segment_bytes - segment.end)
        try:
            headers = self._stage_run(segment, islice(payloads, start, None), room)
            assert self.used_bytes + self._staging.run_bytes <= self.capacity_bytes
            segment.append(self._staging.buffers)
            self.used_bytes += self._staging.run_bytes
        finally:
            self._staging.clear()
        self.sequence += len(headers)
        return _enter(segment, headers)

    def _stage_run(
        self, segment: Segment, payloads: Iterable[Payload], room: int
    ) -> list[RecordHeader]:
        """The first one goes in whatever the room: `_writable` found it a segment."""
        headers: list[RecordHeader] = []
        for payload in payloads:
            block, encoded = payload.block, payload.encoded
            sequence = self.sequence + len(headers) + 1
            header = RecordHeader(
                block.key, block.length_bytes, block.checksum, sequence, segment.id, encoded
            )
            fits = self._staging.run_bytes + header.record_bytes <= room or not headers
            if not fits or not self._staging.add(payload.data, header):
                break
            headers.append(header)
        return headers

    def _writable(self, needed_bytes: int) -> Segment:
        """A segment with that much room; an empty one takes a record of any size."""
        active = self._active
        if active and active.end and active.end + needed_bytes > self.segment_bytes:
            self.seal()
            active = None
        if active is None:
            active = self._next_segment()
            self._next_number += 1
            self.segments.append(active)
            self._active = active
        return active

    def _next_segment(self) -> Segment:
        if self._spare is None:
            return Segment.create(self.folder, self._next_number, direct=self.direct)
        self._spare.reuse(self._next_number)
        segment, self._spare = self._spare, None
        return segment

    def seal(self) -> None:
        """The next append starts a new segment."""
        if self._active is not None:
            self._active.trim()
        self.sync()
        self._summarise()
        if self._active is not None:
            self._active.rows = bytearray()
        self._active = None

    def _summarise(self) -> None:
        """Beside the newest segment, as far as the capacity allows."""
        segment = self._active
        if segment is not None:
            old_bytes = segment.summary_bytes
            more_bytes = summary_bytes(len(segment.keys)) - old_bytes
            if self.file_bytes + more_bytes <= self.capacity_bytes:
                segment.summarise()
                self.used_bytes += segment.summary_bytes - old_bytes

    def sync(self) -> None:
        """Make durable all that was appended."""
        if self._active is not None:
            self._active.sync()
        self.durable_sequence = self.sequence

    def retire_oldest(self) -> None:
        segment = self.segments[0]
        self.used_bytes -= segment.summary_bytes
        segment.drop_summary()
        if self._spare is None and segment.file_bytes <= self.segment_bytes and not segment.is_read:
            self._spare = segment
        else:
            segment.retire()
        self.segments.popleft()
        self.used_bytes -= segment.end
        if segment is self._active:
            self._active = None

    def drop_spare(self) -> None:
        """Make its bytes free for others."""
        if self._spare is not None:
            self._spare.retire()
            self._spare = None

    def close(self) -> None:
        with suppress(OSError):  # a restart then takes what is left over for a torn tail
            self.drop_spare()
            if self._active is not None:
                self._active.trim()
                self._summarise()
        for segment in self.segments:
            segment.close()
        self.segments.clear()

    def survivor_bytes_max(self) -> int:
        """Of the oldest segment, so that removing it frees at least half of it."""
        return min(self.segments[0].end, self.segment_bytes) // 2


def _enter(segment: Segment, headers: list[RecordHeader]) -> list[Record]:
    """Records that were just written at the end of a segment."""
    offset = segment.end - sum(header.record_bytes for header in headers)
    records = []
    for header in headers:
        segment.keys.append(header.key)
        segment.rows += pack_row(offset, header)
        records.append(
            Record(segment, offset, header.length_bytes, header.checksum, header.encoded)
        )
        offset += header.record_bytes
    return records

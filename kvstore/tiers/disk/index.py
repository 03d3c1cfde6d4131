"""Which blocks a disk tier holds, and where; and what it counts."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence

from kvstore.core.ids import BlockKey
from kvstore.tiers.base import BlockInfo, MissReason, TierKind, TierStatistics
from kvstore.tiers.disk.log import Record
from kvstore.tiers.disk.reader import ReadJob
from kvstore.tiers.disk.segment import Segment


class DiskIndex:
    """Key → record, oldest first. Thread-safe: one short lock, no I/O under it.

    A segment is held under that lock for whoever is about to read it, and nothing here leads to a
    segment once `evict` took out the last of its records: that is when it may be retired.
    """

    def __init__(self, records: dict[BlockKey, Record]) -> None:
        self._records = records
        self._lock = threading.Lock()
        self._hits = 0
        self._evictions = 0
        self._corruptions = 0
        self._errors = 0

    def count(self, *, corruptions: int = 0, errors: int = 0) -> None:
        with self._lock:
            self._corruptions += corruptions
            self._errors += errors

    def open_jobs(
        self, keys: Sequence[BlockKey], into: Sequence[memoryview]
    ) -> list[ReadJob | None]:
        """A job for each key that is here; each holds its segment."""
        with self._lock:
            return [self._open_job(key, buffer) for key, buffer in zip(keys, into, strict=True)]

    def _open_job(self, key: BlockKey, into: memoryview) -> ReadJob | None:
        record = self._records.get(key)
        if record is None:
            return None
        record.segment.hold()
        return ReadJob(key, record, into)

    def settle(self, jobs: Sequence[ReadJob], results: Sequence[MissReason | None]) -> None:
        """Note what came of jobs: a block that was read is worth keeping, a corrupt one is
        dropped."""
        with self._lock:
            for job, reason in zip(jobs, results, strict=True):
                self._settle_one(job, reason)

    def _settle_one(self, job: ReadJob, reason: MissReason | None) -> None:
        if reason is None:
            job.record.read = True
            self._hits += 1
        elif reason is MissReason.CORRUPT:
            self._corruptions += 1
            if self._records.get(job.key) is job.record:
                del self._records[job.key]
        else:
            self._errors += 1

    def insert(self, keys: Iterable[BlockKey], records: Iterable[Record]) -> None:
        with self._lock:
            self._records.update(zip(keys, records, strict=True))

    def want(self, keys: Iterable[BlockKey]) -> set[BlockKey]:
        """Those that are here; they count as read, for someone just offered them again."""
        with self._lock:
            present = {key for key in keys if key in self._records}
            for key in present:
                self._records[key].read = True
            return present

    def live(self, segment: Segment) -> dict[BlockKey, Record]:
        """Blocks whose record in `segment` is the one that counts, in the order written."""
        with self._lock:
            return {
                key: record
                for key in segment.keys
                if (record := self._records.get(key)) is not None and record.segment is segment
            }

    def move(self, old: dict[BlockKey, Record], new: dict[BlockKey, Record]) -> None:
        """Blocks were copied; those dropped meanwhile stay dropped."""
        with self._lock:
            for key, record in new.items():
                if self._records.get(key) is old[key]:
                    del self._records[key]
                    self._records[key] = record

    def evict(self, segment: Segment) -> list[BlockKey]:
        """Forget all that still lies in `segment`."""
        with self._lock:
            gone = [
                key
                for key in dict.fromkeys(segment.keys)
                if key in self._records and self._records[key].segment is segment
            ]
            for key in gone:
                del self._records[key]
            self._evictions += len(gone)
            return gone

    def drop(self, keys: Iterable[BlockKey]) -> list[BlockKey]:
        with self._lock:
            return [key for key in keys if self._records.pop(key, None) is not None]

    def info(self, key: BlockKey) -> BlockInfo | None:
        with self._lock:
            record = self._records.get(key)
            return None if record is None else _info(key, record)

    def inventory(self) -> list[BlockInfo]:
        with self._lock:
            records = list(self._records.items())
        return [_info(key, record) for key, record in records]

    def statistics(self, capacity_bytes: int, used_bytes: int) -> TierStatistics:
        with self._lock:
            return TierStatistics(
                kind=TierKind.DISK,
                capacity_bytes=capacity_bytes,
                used_bytes=used_bytes,
                blocks=len(self._records),
                hits=self._hits,
                evictions=self._evictions,
                corruptions=self._corruptions,
                errors=self._errors,
            )

    def clear(self) -> None:
        with self._lock:
            self._records.clear()

    def __contains__(self, key: BlockKey) -> bool:
        with self._lock:
            return key in self._records

    def present(self, keys: Sequence[BlockKey]) -> list[bool]:
        with self._lock:
            return list(map(self._records.__contains__, keys))

    def __len__(self) -> int:
        return len(self._records)


def _info(key: BlockKey, record: Record) -> BlockInfo:
    return BlockInfo(key, record.length_bytes, record.checksum)

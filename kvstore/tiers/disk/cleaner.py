"""Makes room on a full disk: gives up the oldest segment, and carries forward what is in use."""

from __future__ import annotations

from collections.abc import Iterator

from kvstore.core.ids import BlockKey
from kvstore.tiers.base import BlockInfo, MissReason
from kvstore.tiers.disk.index import DiskIndex
from kvstore.tiers.disk.log import Payload, Record, SegmentLog
from kvstore.tiers.disk.reader import ReadJob, RecordReader
from kvstore.tiers.disk.record import record_bytes
from kvstore.tiers.memory import aligned_buffer, round_up

_COPY_BYTES = 8 << 20
"""Payload bytes carried forward at a time."""

Records = dict[BlockKey, Record]


class Cleaner:
    """The policy of the disk tier: first in, first out, with one more round for blocks that were
    read.

    Every cleaning frees at least half of a segment, so that a store never copies more than it
    writes. Used by the writer alone.
    """

    def __init__(self, log: SegmentLog, index: DiskIndex, reader: RecordReader) -> None:
        self._log = log
        self._index = index
        self._reader = reader

    def clean_oldest(self, evicted: list[BlockKey]) -> None:
        """Give up the oldest segment; what did not survive is added to `evicted`.

        Raises OSError if a file cannot be removed.
        """
        log = self._log
        log.drop_spare()
        segment = log.segments[0]
        if segment is log.segments[-1]:
            log.seal()
        survivors = choose_survivors(self._index.live(segment), log.survivor_bytes_max())
        try:
            self._copy_forward(survivors)
        except OSError:  # a survivor is a favour: without space for it, it goes
            self._index.count(errors=1)
        evicted += self._index.evict(segment)
        log.retire_oldest()

    def _copy_forward(self, survivors: Records) -> None:
        """The copies are durable before the originals go."""
        if not survivors:
            return
        copies: Records = {}
        for part in _parts(survivors):
            copies |= self._copy(part)
        self._log.sync()
        self._index.move(survivors, copies)

    def _copy(self, part: Records) -> Records:
        payloads = self._read(part)
        records: list[Record] = []
        while len(records) < len(payloads):
            records += self._log.append(payloads, len(records), self._log.capacity_bytes)
        return {p.block.key: record for p, record in zip(payloads, records, strict=True)}

    def _read(self, part: Records) -> list[Payload]:
        """What is whole, as it is stored. The others are counted, and evicted with their
        segment."""
        memory = aligned_buffer(sum(round_up(_length(record)) for record in part.values()))
        jobs = []
        for key, record in part.items():
            record.segment.hold()
            jobs.append(ReadJob(key, record, memory[: _length(record)], as_stored=True))
            memory = memory[round_up(_length(record)) :]
        results = self._reader.read(jobs)
        self._index.count(
            corruptions=results.count(MissReason.CORRUPT), errors=results.count(MissReason.FAILED)
        )
        return [
            Payload(_info(job), job.into, job.record.encoded)
            for job, reason in zip(jobs, results, strict=True)
            if reason is None
        ]


def choose_survivors(live: Records, bytes_max: int) -> Records:
    """The blocks that were read since they were written, first ones first, as far as they fit."""
    chosen: Records = {}
    for key, record in live.items():
        bytes_max -= record_bytes(_length(record)) if record.read else 0
        if bytes_max < 0:
            break
        if record.read:
            chosen[key] = record
    return chosen


def _parts(records: Records) -> Iterator[Records]:
    """Consecutive records of at most `_COPY_BYTES`, at least one each."""
    part: Records = {}
    size = 0
    for key, record in records.items():
        if part and size + _length(record) > _COPY_BYTES:
            yield part
            part, size = {}, 0
        part[key] = record
        size += _length(record)
    if part:
        yield part


def _length(record: Record) -> int:
    return record.stored.length_bytes


def _info(job: ReadJob) -> BlockInfo:
    return BlockInfo(job.key, job.record.length_bytes, job.record.checksum)

"""Reads records back, several at a time, and believes nothing that it reads."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kvstore.codecs.frame import decode_block
from kvstore.core.checksum import checksum
from kvstore.core.errors import ProtocolError
from kvstore.core.ids import BlockKey
from kvstore.tiers.base import MissReason
from kvstore.tiers.disk.log import Record
from kvstore.tiers.disk.record import HEADER_BYTES, decode_record_header
from kvstore.tiers.disk.threads import DiskThreads
from kvstore.tiers.memory import ALIGNMENT, aligned_buffer, copy_bytes, is_aligned, round_up


@dataclass(frozen=True, slots=True)
class ReadJob:
    """`record.segment` is held until the job is done; `into` has at least the length that comes."""

    key: BlockKey
    record: Record
    into: memoryview
    as_stored: bool = False
    """Read what lies on disk, not the block that it decodes to."""


class _Scratch(threading.local):
    """Aligned memory of one thread. Grows to the longest block that needed it."""

    def __init__(self) -> None:
        self._memory = aligned_buffer(2 * ALIGNMENT)

    def take(self, length_bytes: int) -> memoryview:
        if len(self._memory) < length_bytes:
            self._memory = aligned_buffer(length_bytes)
        return self._memory[:length_bytes]


class RecordReader:
    """Owns its threads until `close`. Queue depth: `threads` for each call of `read`."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._pool = DiskThreads(threads, "kvstore-disk-read")
        self._scratch = _Scratch()
        self._encoded = _Scratch()
        self._lock = threading.Lock()
        self._closed = False

    def read(self, jobs: Sequence[ReadJob]) -> list[MissReason | None]:
        """Do all jobs and let go of their segments. None where the block is whole; CORRUPT or
        FAILED where it is not."""
        if len(jobs) <= 1:
            return self._read_some(jobs)
        count = min(self._threads, len(jobs))
        stripes = [jobs[i::count] for i in range(count)]
        results: list[MissReason | None] = [None] * len(jobs)
        for i, part in enumerate(self._start(stripes)):
            results[i::count] = part
        return results

    def _start(self, stripes: list[Sequence[ReadJob]]) -> Iterable[list[MissReason | None]]:
        with self._lock:
            if not self._closed:
                return self._pool.map(self._read_some, stripes)
        return map(self._refuse, stripes)

    def _refuse(self, jobs: Sequence[ReadJob]) -> list[MissReason | None]:
        for job in jobs:
            job.record.segment.let_go()
        return [MissReason.FAILED] * len(jobs)

    def _read_some(self, jobs: Sequence[ReadJob]) -> list[MissReason | None]:
        return [self._read_one(job) for job in jobs]

    def _read_one(self, job: ReadJob) -> MissReason | None:
        try:
            whole = self._load(job)
        except OSError:
            return MissReason.FAILED
        finally:
            job.record.segment.let_go()
        return None if whole else MissReason.CORRUPT

    def _load(self, job: ReadJob) -> bool:
        stored = job.record.stored.length_bytes
        if job.as_stored or job.record.encoded is None:
            return self._transfer(job, job.into[:stored])
        encoded = self._encoded.take(stored)
        return self._transfer(job, encoded) and _decode(job, encoded)

    def _transfer(self, job: ReadJob, into: memoryview) -> bool:
        """Whether header and payload are those of the block.

        One call reads both. The payload goes straight into place as far as alignment allows; the
        tail of its last unit, or all of it, comes through scratch memory.
        """
        length = into.nbytes
        direct = length // ALIGNMENT * ALIGNMENT if is_aligned(into) else 0
        scratch = self._scratch.take(HEADER_BYTES + round_up(length - direct))
        header, rest = scratch[:HEADER_BYTES], scratch[HEADER_BYTES:]
        buffers = [part for part in (header, into[:direct], rest) if part.nbytes]
        wanted = HEADER_BYTES + round_up(length)
        if job.record.segment.read(buffers, job.record.offset) != wanted:
            return False
        if not _is_header_of(job, header):
            return False
        if direct < length:
            copy_bytes(into[direct:], rest[: length - direct])
        return checksum(into) == job.record.stored.checksum

    def close(self) -> None:
        """Waits for jobs under way, as long as the medium takes. Idempotent."""
        with self._lock:
            self._closed = True
        self._pool.shutdown()


def _is_header_of(job: ReadJob, header: memoryview) -> bool:
    """A disk may answer with another place than was asked for; the header tells."""
    found = decode_record_header(header)
    return (
        found is not None
        and found.key == job.key
        and found.length_bytes == job.record.length_bytes
        and found.checksum == job.record.checksum
        and found.encoded == job.record.encoded
        and found.segment_id == job.record.segment.id
    )


def _decode(job: ReadJob, encoded: memoryview) -> bool:
    into = job.into[: job.record.length_bytes]
    try:
        decode_block(encoded, into)
    except ProtocolError:
        return False
    return checksum(into) == job.record.checksum

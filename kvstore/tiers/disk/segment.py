"""One file of the log: records one after the other, written once, given up as a whole."""

from __future__ import annotations

import os
import re
import secrets
import threading
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from kvstore.core.ids import BlockKey
from kvstore.tiers.disk.io import open_file, read_all, sync_folder, write_all
from kvstore.tiers.disk.record import HEADER_BYTES, RecordHeader, decode_record_header
from kvstore.tiers.disk.summary import (
    Summary,
    encode_summary,
    read_summary,
    summary_bytes,
    summary_path,
    write_summary,
)
from kvstore.tiers.memory import aligned_buffer

_NAME = re.compile(r"segment-(\d{10})\.kv")


@dataclass(frozen=True, slots=True)
class Scan:
    """What a segment holds, by its headers alone."""

    headers: list[tuple[int, RecordHeader]]
    """With the offset of each; those that `summary` does not have."""
    intact: bool
    """Whether the last record ends where the file does."""
    summary: Summary | None = None
    """Of the records before these."""


class Segment:
    """An open segment file.

    Ownership: the log that opened it retires or closes it. Threads: one writer; any number of
    readers, each between `hold` and `let_go`; the file is closed when it is retired or closed *and*
    the last reader has let go. Raises OSError; maps nothing.
    """

    def __init__(self, path: Path, number: int, file: int, end: int) -> None:
        self.path = path
        self.number = number
        self.id = _new_id()
        """In the header of all its records, so that they cannot be taken for those of an earlier
        use of the file. Not to be guessed: payloads are other people's bytes."""
        self.end = end
        """Where the next record goes."""
        self.file_bytes = end
        """What lies beyond `end` is left from an earlier use of the file."""
        self.keys: list[BlockKey] = []
        """Of all records ever written here, in order."""
        self.rows = bytearray()
        """Their packed rows, while more may be added."""
        self.summary_bytes = 0
        """Of the file beside this one."""
        self._file = file
        self._lock = threading.Lock()
        self._readers = 0
        self._finished = False

    @classmethod
    def create(cls, folder: Path, number: int, *, direct: bool) -> Self:
        path = _path(folder, number)
        segment = cls(path, number, open_file(path, direct=direct, create=True), 0)
        sync_folder(folder)
        return segment

    @classmethod
    def open_all(cls, folder: Path, *, direct: bool) -> list[Self]:
        """Those in `folder`, oldest first."""
        with ExitStack() as opened:
            segments = []
            for path in sorted(folder.iterdir()):
                if match := _NAME.fullmatch(path.name):
                    file = open_file(path, direct=direct)
                    segments.append(cls(path, int(match[1]), file, os.fstat(file).st_size))
                    opened.callback(segments[-1].close)
            opened.pop_all()
        return segments

    def reuse(self, number: int) -> None:
        """Begin again, empty, as another segment, over the bytes that are there: the filesystem
        then need not free them and find others. Only while nobody reads."""
        self.drop_summary()
        path = _path(self.path.parent, number)
        self.path.rename(path)
        self.path = path
        sync_folder(path.parent)
        self.number, self.id = number, _new_id()
        self.end, self.keys, self.rows = 0, [], bytearray()

    def trim(self) -> None:
        """Give back what lies beyond the end."""
        if self.file_bytes > self.end:
            os.ftruncate(self._file, self.end)
            self.file_bytes = self.end

    def append(self, buffers: list[memoryview]) -> None:
        """Write whole records at the end, in one call. On OSError the segment is as it was."""
        try:
            write_all(self._file, buffers, self.end)
        except OSError:
            with suppress(OSError):  # a torn tail does no harm: it is overwritten, or ends a scan
                os.ftruncate(self._file, self.end)
                self.file_bytes = self.end
            raise
        self.end += sum(buffer.nbytes for buffer in buffers)
        self.file_bytes = max(self.file_bytes, self.end)

    def sync(self) -> None:
        os.fdatasync(self._file)

    def read(self, buffers: list[memoryview], offset: int) -> int:
        """Bytes read; fewer than asked for only at the end of the file."""
        return read_all(self._file, buffers, offset)

    def summarise(self) -> None:
        """Write what is here beside it, once it is durable, where that spares a restart time."""
        if len(self.rows) and summary_bytes(len(self.keys)):
            data = encode_summary(self.id, self.end, self.rows)
            self.summary_bytes = write_summary(self.path, data)

    def drop_summary(self) -> None:
        if self.summary_bytes:
            summary_path(self.path).unlink(missing_ok=True)
            self.summary_bytes = 0

    def read_summary(self) -> Summary | None:
        """That of this file, if it is there and whole."""
        summary = read_summary(self.path)
        if summary is None or summary.end > self.end:
            return None
        unit = aligned_buffer(HEADER_BYTES)
        first = decode_record_header(unit) if self.read([unit], 0) == HEADER_BYTES else None
        if first is None or first.segment_id != summary.segment_id:
            return None
        self.id = summary.segment_id
        self.summary_bytes = summary_path(self.path).stat().st_size
        return summary

    def scan(self) -> Scan:
        """Read the summary, and walk the headers that it does not have, up to the first that is
        damaged, or of an earlier use of the file, or whose record is cut short.

        What follows damage is given up rather than searched for records: bytes of a payload could
        be made to look like one.
        """
        unit = aligned_buffer(HEADER_BYTES)
        headers: list[tuple[int, RecordHeader]] = []
        summary = self.read_summary()
        offset = summary.end if summary else 0
        while self.read([unit], offset) == HEADER_BYTES:
            header = decode_record_header(unit)
            if header is None or offset + header.record_bytes > self.end:
                break
            if offset and header.segment_id != self.id:
                break
            self.id = header.segment_id
            headers.append((offset, header))
            offset += header.record_bytes
        return Scan(headers, offset == self.end, summary)

    def hold(self) -> None:
        """Keep the file open while reading. Never after `retire`: whoever looks up a segment holds
        it under the lock of the index that leads there."""
        with self._lock:
            assert not self._finished
            self._readers += 1

    def let_go(self) -> None:
        with self._lock:
            self._readers -= 1
            last = self._finished and self._readers == 0
        if last:
            os.close(self._file)

    @property
    def is_read(self) -> bool:
        with self._lock:
            return self._readers > 0

    def retire(self) -> None:
        """Remove the file. Readers that hold it finish undisturbed."""
        self.drop_summary()
        self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        with self._lock:
            self._finished = True
            last = self._readers == 0
        if last:
            os.close(self._file)

    def __repr__(self) -> str:
        return f"Segment({self.path.name}, {self.end} bytes, {len(self.keys)} records)"


def _path(folder: Path, number: int) -> Path:
    return folder / f"segment-{number:010}.kv"


def _new_id() -> int:
    return secrets.randbits(64)

"""One file of the log: records one after the other, written once, removed as a whole."""

from __future__ import annotations

import os
import re
import threading
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from kvstore.core.ids import BlockKey
from kvstore.tiers.disk.io import open_file, read_all, sync_folder, write_all
from kvstore.tiers.disk.record import HEADER_BYTES, RecordHeader, decode_record_header
from kvstore.tiers.memory import aligned_buffer

_NAME = re.compile(r"segment-(\d{10})\.kv")


@dataclass(frozen=True, slots=True)
class Scan:
    """What a segment holds, by its headers alone."""

    headers: list[tuple[int, RecordHeader]]
    """With the offset of each."""
    intact: bool
    """Whether the last record ends where the file does."""


class Segment:
    """An open segment file.

    Ownership: the log that opened it retires or closes it. Threads: one writer; any number of
    readers, each between `hold` and `let_go`; the file is closed when it is retired or closed *and*
    the last reader has let go. Raises OSError; maps nothing.
    """

    def __init__(self, path: Path, number: int, file: int, end: int) -> None:
        self.path = path
        self.number = number
        self.end = end
        """Bytes of the file; where the next record goes."""
        self.keys: list[BlockKey] = []
        """Of all records ever written here, in order."""
        self._file = file
        self._lock = threading.Lock()
        self._readers = 0
        self._finished = False

    @classmethod
    def create(cls, folder: Path, number: int, *, direct: bool) -> Self:
        path = folder / f"segment-{number:010}.kv"
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

    def append(self, buffers: list[memoryview]) -> None:
        """Write whole records at the end, in one call. On OSError the segment is as it was."""
        try:
            write_all(self._file, buffers, self.end)
        except OSError:
            with suppress(OSError):  # a torn tail does no harm: it is overwritten, or ends a scan
                os.ftruncate(self._file, self.end)
            raise
        self.end += sum(buffer.nbytes for buffer in buffers)

    def sync(self) -> None:
        os.fdatasync(self._file)

    def read(self, buffers: list[memoryview], offset: int) -> int:
        """Bytes read; fewer than asked for only at the end of the file."""
        return read_all(self._file, buffers, offset)

    def scan(self) -> Scan:
        """Walk the headers, up to the first that is damaged or whose record is cut short.

        What follows damage is given up rather than searched for records: bytes of a payload could
        be made to look like one.
        """
        unit = aligned_buffer(HEADER_BYTES)
        headers, offset = [], 0
        while self.read([unit], offset) == HEADER_BYTES:
            header = decode_record_header(unit)
            if header is None or offset + header.record_bytes > self.end:
                break
            headers.append((offset, header))
            offset += header.record_bytes
        return Scan(headers, intact=offset == self.end)

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

    def retire(self) -> None:
        """Remove the file. Readers that hold it finish undisturbed."""
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

"""The disk tier: blocks in an append-only log of segment files."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

from kvstore.codecs.base import CodecName
from kvstore.codecs.registry import CODECS
from kvstore.core.errors import ConfigurationError
from kvstore.core.ids import BlockKey, LayoutFingerprint
from kvstore.core.layout import KVLayout
from kvstore.tiers.base import (
    Block,
    BlockInfo,
    MissReason,
    StoreResult,
    TierKind,
    TierStatistics,
)
from kvstore.tiers.disk.cleaner import Cleaner
from kvstore.tiers.disk.index import DiskIndex
from kvstore.tiers.disk.io import supports_direct
from kvstore.tiers.disk.log import SegmentLog
from kvstore.tiers.disk.preparing import Encoder, Preparer
from kvstore.tiers.disk.reader import RecordReader
from kvstore.tiers.disk.recovery import lock_folder, recover
from kvstore.tiers.disk.writer import Writer
from kvstore.tiers.memory import ALIGNMENT

SEGMENT_BYTES_MIN = 16 << 10
_SEGMENTS_MIN, _SEGMENTS_MAX = 8, 256
_SEGMENT_BYTES_DEFAULT = 64 << 20


def default_segment_bytes(capacity_bytes: int) -> int:
    """64 MiB; less on a small disk, for eight segments; more on a large one, for every segment
    costs an open file."""
    wanted = max(_SEGMENT_BYTES_DEFAULT, capacity_bytes // _SEGMENTS_MAX)
    return min(wanted, capacity_bytes // _SEGMENTS_MIN) // ALIGNMENT * ALIGNMENT


class DiskTier:
    """`Tier` over files in `folder`, which it locks against other users until `close`.

    A store appends whole batches to the newest segment and returns when they are durable. A full
    disk gives up its oldest segment: blocks that were read since they were written are carried
    forward once, up to half of a segment; the others are evicted. `used_bytes` counts the bytes of
    all segment files, headers and dropped blocks included, and never exceeds the capacity.

    With a `codec` other than raw, blocks of a layout that was learned are stored smaller and come
    back with its error: `info` and `load` then speak of the block as it comes back, which has a
    checksum of its own. The codec is part of each record, so that it may be another one after a
    restart. Encoding runs on two threads, beside the writing.

    A restart finds all blocks again, by their headers. That includes blocks that were dropped: a
    drop is a hint, for a block that is addressed by its content cannot be stale.

    Threads: stores run one at a time; loads run beside them and beside each other.
    Failure: a full or sick disk leaves blocks out of `stored` (`errors` counts), and a batch ends
    at the first that does not go in; the tier keeps serving. Blocks that can never fit are left out
    and counted the same way.
    """

    kind = TierKind.DISK

    def __init__(
        self,
        folder: Path,
        capacity_bytes: int,
        *,
        codec: CodecName = "raw",
        segment_bytes: int | None = None,
        read_threads: int = 4,
    ) -> None:
        """Raises ConfigurationError: folder not writable or in use, or capacity too small."""
        self.folder = Path(folder)
        self.capacity_bytes = capacity_bytes
        segment_bytes = segment_bytes or default_segment_bytes(capacity_bytes)
        _check_sizes(capacity_bytes, segment_bytes)
        self._lock_file = lock_folder(self.folder)
        self.direct = supports_direct(self.folder)
        """Whether reads and writes bypass the page cache."""
        self._log = SegmentLog(self.folder, capacity_bytes, segment_bytes, direct=self.direct)
        try:
            self._index = self._recover(read_threads)
        except OSError as error:
            self._log.close()
            os.close(self._lock_file)
            raise ConfigurationError(
                f"disk tier: cannot open the segments in {self.folder}: {error.strerror}; repair "
                "or empty the folder, or set another one"
            ) from error
        self._encoder = Encoder(CODECS[codec])
        self._preparer = Preparer(self._encoder)
        self._reader = RecordReader(read_threads)
        cleaner = Cleaner(self._log, self._index, self._reader)
        self._writer = Writer(self._log, self._index, self._preparer, cleaner)
        self._writing = threading.Lock()
        self._closed = False

    def _recover(self, threads: int) -> DiskIndex:
        found = recover(self.folder, direct=self.direct, threads=threads)
        self._log.adopt(found.segments, found.sequence, found.active)
        index = DiskIndex(found.index)
        index.count(corruptions=found.damaged)
        while self._log.used_bytes > self._log.limit_bytes:  # the capacity is smaller than it was
            index.evict(self._log.segments[0])
            self._log.retire_oldest()
        return index

    @property
    def durable_sequence(self) -> int:
        """All records up to this one survive a power failure."""
        return self._log.durable_sequence

    def learn_layout(self, fingerprint: LayoutFingerprint, layout: KVLayout) -> None:
        """Blocks with `fingerprint` in their key have `layout`; until a codec knows that, it leaves
        them as they are. At most 1,024 layouts are remembered."""
        self._encoder.learn_layout(fingerprint, layout)

    def store(self, blocks: Sequence[Block]) -> StoreResult:
        evicted: list[BlockKey] = []
        with self._writing:
            if not self._closed:
                evicted = self._writer.write(blocks)
        keys = dict.fromkeys(block.key for block in blocks)
        return StoreResult([key for key in keys if key in self._index], evicted)

    def load(self, keys: Sequence[BlockKey], into: Sequence[memoryview]) -> list[MissReason | None]:
        opened = self._index.open_jobs(keys, into)
        jobs = [job for job in opened if job is not None]
        results = self._reader.read(jobs)
        self._index.settle(jobs, results)
        rest = iter(results)
        return [MissReason.NEVER_STORED if job is None else next(rest) for job in opened]

    def drop(self, keys: Iterable[BlockKey]) -> list[BlockKey]:
        """Forget blocks until the next restart; their bytes go when their segment does."""
        return self._index.drop(keys)

    def info(self, key: BlockKey) -> BlockInfo | None:
        return self._index.info(key)

    def __contains__(self, key: BlockKey) -> bool:
        return key in self._index

    def present(self, keys: Sequence[BlockKey]) -> list[bool]:
        return self._index.present(keys)

    def inventory(self) -> list[BlockInfo]:
        return self._index.inventory()

    def statistics(self) -> TierStatistics:
        return self._index.statistics(self.capacity_bytes, self._log.file_bytes)

    def close(self) -> None:
        """See `Tier`. Waits for stores and loads under way; later ones store and find nothing."""
        with self._writing:
            if self._closed:
                return
            self._closed = True
            self._preparer.close()
            self._reader.close()
            self._index.clear()
            self._log.close()
            os.close(self._lock_file)

    def __repr__(self) -> str:
        used = f"{self._log.used_bytes}/{self.capacity_bytes} bytes"
        how = "direct" if self.direct else "buffered"
        return f"DiskTier({self.folder}, {len(self._index)} blocks, {used}, {how} I/O)"


def _check_sizes(capacity_bytes: int, segment_bytes: int) -> None:
    if segment_bytes < SEGMENT_BYTES_MIN or capacity_bytes < 2 * segment_bytes:
        least = max(2 * segment_bytes, _SEGMENTS_MIN * SEGMENT_BYTES_MIN)
        raise ConfigurationError(
            f"disk tier: {capacity_bytes} bytes are too few for segments of {segment_bytes} bytes; "
            f"set a capacity of at least {least} bytes"
        )

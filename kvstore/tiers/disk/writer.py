"""Writes batches of blocks, durably, while the next ones are being prepared."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field

from kvstore.core.ids import BlockKey
from kvstore.tiers.base import Block
from kvstore.tiers.disk.cleaner import Cleaner
from kvstore.tiers.disk.index import DiskIndex
from kvstore.tiers.disk.log import Payload, Record, SegmentLog
from kvstore.tiers.disk.preparing import Preparer
from kvstore.tiers.disk.record import record_bytes


@dataclass
class _Written:
    """What has become of a batch."""

    keys: list[BlockKey] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    corrupt: int = 0
    errors: int = 0


class Writer:
    """One batch at a time."""

    def __init__(
        self, log: SegmentLog, index: DiskIndex, preparer: Preparer, cleaner: Cleaner
    ) -> None:
        self._log = log
        self._index = index
        self._preparer = preparer
        self._cleaner = cleaner

    def write(self, blocks: Sequence[Block]) -> list[BlockKey]:
        """Blocks become visible when they are durable; returns those that were evicted for them.

        What does not go in is counted.
        """
        evicted: list[BlockKey] = []
        admitted = self._admit(blocks)
        written = _Written()
        try:
            self._append_all(admitted, written, evicted)
        except OSError:
            written.errors = len(admitted) - len(written.records) - written.corrupt
        try:
            self._log.sync()
        except OSError:  # what is written may or may not be there
            written.errors += len(written.records)
            written.records.clear()
        self._index.count(corruptions=written.corrupt, errors=written.errors)
        self._index.insert(written.keys[: len(written.records)], written.records)
        return evicted

    def _admit(self, blocks: Sequence[Block]) -> list[Block]:
        """Blocks that are to be written: new, and of a size that fits."""
        seen = self._index.want(block.key for block in blocks)
        admitted = []
        for block in blocks:
            if block.key in seen:
                continue
            seen.add(block.key)
            if record_bytes(block.data.nbytes) > self._log.limit_bytes:
                self._index.count(errors=1)
            else:
                admitted.append(block)
        return admitted

    def _append_all(
        self, blocks: Sequence[Block], written: _Written, evicted: list[BlockKey]
    ) -> None:
        with closing(self._preparer.prepare(blocks)) as parts:
            for prepared in parts:
                written.corrupt += prepared.corrupt
                if not self._append(prepared.payloads, written, evicted):
                    return

    def _append(self, payloads: list[Payload], written: _Written, evicted: list[BlockKey]) -> bool:
        """False where the disk is full of the batch itself."""
        done = 0
        while done < len(payloads):
            while not self._log.has_room(payloads[done].data.nbytes):
                if written.records and self._log.segments[0] is written.records[0].segment:
                    return False  # a batch does not evict its own head for its tail
                self._cleaner.clean_oldest(evicted)
            records = self._log.append(payloads, done, self._log.limit_bytes)
            written.records += records
            written.keys += [p.block.key for p in payloads[done : done + len(records)]]
            done += len(records)
        return True

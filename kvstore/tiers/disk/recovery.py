"""Finding again what an earlier life of a disk tier left in its folder."""

from __future__ import annotations

import fcntl
import gc
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import repeat
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy.typing as npt

from kvstore.core.errors import ConfigurationError
from kvstore.core.ids import BlockKey, LayoutFingerprint, make_keys
from kvstore.tiers.disk.log import Record
from kvstore.tiers.disk.record import Encoded
from kvstore.tiers.disk.segment import Scan, Segment
from kvstore.tiers.disk.summary import pack_row


@dataclass(frozen=True, slots=True)
class Recovered:
    segments: list[Segment]
    index: dict[BlockKey, Record]
    """Oldest first."""
    sequence: int
    """The highest found."""
    active: Segment | None
    """The newest segment, if appends may go on in it."""
    damaged: int
    """Segments with a torn tail or a bad header; what came before it is kept."""


def lock_folder(folder: Path) -> int:
    """Make `folder` if need be and lock it for this process; returns the descriptor of the lock.

    Raises ConfigurationError if it cannot be written to or is in use.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigurationError(
            f"disk tier: cannot write to {folder}: {error.strerror}; set another folder"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise ConfigurationError(
            f"disk tier: {folder} is in use by another node; give each node a folder of its own"
        ) from error
    return lock


def recover(folder: Path, *, direct: bool, threads: int) -> Recovered:
    """Open all segments and read their summaries or headers, not their payloads: a checksum is
    verified when a
    block is loaded. Raises OSError if a segment cannot be opened."""
    segments = Segment.open_all(folder, direct=direct)
    with ThreadPoolExecutor(threads, thread_name_prefix="kvstore-disk-scan") as pool:
        scans = list(pool.map(_scan, segments))
    with _no_collector():
        found = [_found(segment, scan) for segment, scan in zip(segments, scans, strict=True)]
        for complete in segments[:-1]:
            complete.rows = bytearray()
        index: dict[BlockKey, Record] = {}
        for one in sorted(found, key=attrgetter("sequence")):
            if not index.keys().isdisjoint(one.keys):
                for key in one.keys:
                    index.pop(key, None)
            index.update(zip(one.keys, one.records, strict=True))
    return Recovered(
        segments=segments,
        index=index,
        sequence=max((one.sequence for one in found), default=0),
        active=segments[-1] if segments and scans[-1].intact else None,
        damaged=sum(not scan.intact for scan in scans),
    )


@dataclass(frozen=True, slots=True)
class _Found:
    """The records of one segment, in the order written."""

    sequence: int
    """Of the last one. Every record of a later segment has a higher one."""
    keys: list[BlockKey]
    records: list[Record]


@contextmanager
def _no_collector() -> Iterator[None]:
    """Millions of objects are made that all live on: the garbage collector would walk them again
    and again, and find nothing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _found(segment: Segment, scan: Scan) -> _Found:
    found = _Found(0, [], [])
    if scan.summary is not None:
        segment.rows += scan.summary.rows.tobytes()
        found = _summarised(segment, scan.summary.rows)
    for offset, header in scan.headers:
        segment.rows += pack_row(offset, header)
        found.keys.append(header.key)
        found.records.append(
            Record(segment, offset, header.length_bytes, header.checksum, header.encoded)
        )
    segment.keys += found.keys
    return replace(found, sequence=scan.headers[-1][1].sequence) if scan.headers else found


def _summarised(segment: Segment, rows: npt.NDArray[Any]) -> _Found:
    """Column by column, without a step of Python for each record that is stored raw."""
    names: dict[LayoutFingerprint, LayoutFingerprint] = {}
    layouts = [names.setdefault(layout, layout) for layout in rows["layout"].tolist()]
    columns = (rows[name].tolist() for name in ("offset", "length_bytes", "checksum"))
    encoded: Iterable[Encoded | None] = repeat(None)
    if rows["encoded_bytes"].any():
        encoded = (
            Encoded(length, crc) if length else None
            for length, crc in rows[["encoded_bytes", "encoded_checksum"]].tolist()
        )
    return _Found(
        sequence=int(rows["sequence"][-1]),
        keys=make_keys(layouts, rows["hash"].tolist()),
        records=list(map(Record, repeat(segment), *columns, encoded)),
    )


def _scan(segment: Segment) -> Scan:
    with suppress(OSError):
        return segment.scan()
    return Scan([], intact=False)  # unreadable: its bytes still count, until it is the oldest

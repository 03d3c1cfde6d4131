"""Finding again what an earlier life of a disk tier left in its folder."""

from __future__ import annotations

import fcntl
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kvstore.core.errors import ConfigurationError
from kvstore.core.ids import BlockKey
from kvstore.tiers.disk.log import Record
from kvstore.tiers.disk.segment import Scan, Segment


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
    """Open all segments and read their headers, not their payloads: a checksum is verified when a
    block is loaded. Raises OSError if a segment cannot be opened."""
    segments = Segment.open_all(folder, direct=direct)
    with ThreadPoolExecutor(threads, thread_name_prefix="kvstore-disk-scan") as pool:
        scans = list(pool.map(_scan, segments))
    found: dict[BlockKey, tuple[int, Record]] = {}
    for segment, scan in zip(segments, scans, strict=True):
        for offset, header in scan.headers:
            segment.keys.append(header.key)
            record = Record(segment, offset, header.length_bytes, header.checksum)
            if header.key not in found or found[header.key][0] < header.sequence:
                found[header.key] = (header.sequence, record)
    ordered = sorted(found.items(), key=lambda item: item[1][0])
    return Recovered(
        segments=segments,
        index={key: record for key, (_, record) in ordered},
        sequence=ordered[-1][1][0] if ordered else 0,
        active=segments[-1] if segments and scans[-1].intact else None,
        damaged=sum(not scan.intact for scan in scans),
    )


def _scan(segment: Segment) -> Scan:
    with suppress(OSError):
        return segment.scan()
    return Scan([], intact=False)  # unreadable: its bytes still count, until it is the oldest

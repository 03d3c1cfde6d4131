"""What a conductor keeps over a restart, as a file."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.conductor.conductor import Conductor
from cluster.conductor.feed import IndexFeed
from cluster.conductor.kept import KeptRun, KeptState
from cluster.membership.convert_snapshot import (
    blocks_to,
    header_to,
    positions_from,
    runs_from,
    state_from,
)
from cluster.membership.frames import frame, parse, read_file, write_file
from cluster.membership.views import Position, Positions, Views
from cluster.wire.v1 import snapshot_pb2 as pb
from kvstore.core.errors import KVStoreError, ProtocolError
from kvstore.core.ids import MemberId

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """As it was read. The blocks are unpacked as they are taken in."""

    state: KeptState
    positions: Mapping[MemberId, Position]
    """Of members whose blocks are there."""
    blocks: Sequence[memoryview]

    def runs(self) -> Iterator[KeptRun]:
        for packed in self.blocks:
            yield from runs_from(parse(pb.SnapshotBlocks, packed))

    def restore(self, conductor: Conductor) -> Mapping[MemberId, IndexFeed]:
        """Into a new conductor. Raises KVStoreError for what cannot be; it is of no use then."""
        layouts = {name: position.layouts for name, position in self.positions.items()}
        return conductor.restore(self.state, layouts, self.runs())


def read_snapshot(path: Path) -> Snapshot:
    """Raises OSError, or KVStoreError if it is no snapshot or not whole."""
    packed = read_file(path)
    if len(packed) < 2:
        raise ProtocolError(f"{path}: ends in the middle")
    header = parse(pb.SnapshotHeader, packed[0])
    end = parse(pb.SnapshotEnd, packed[-1])
    if not end.complete:
        raise ProtocolError(f"{path}: ends in the middle")
    return Snapshot(state_from(header), positions_from(header, end.void), packed[1:-1])


async def save_snapshot(path: Path, conductor: Conductor, views: Views) -> None:
    """Returns when it is on the disk. Others run meanwhile: about a millisecond at a time is spent
    here, and the file is written on a thread. Raises OSError or ResourceExhaustedError."""
    positions = views.positions()
    state = conductor.keep()
    frames = [frame(header_to(state, positions.of))]
    for runs in conductor.kept_runs():
        frames.append(frame(blocks_to(runs)))
        await asyncio.sleep(0)
    frames.append(frame(_end(state, positions)))
    await asyncio.to_thread(write_file, path, frames)


def _end(state: KeptState, positions: Positions) -> pb.SnapshotEnd:
    broken = positions.broken()
    void = [kept.slot for kept in state.members if kept.member.member_id in broken]
    return pb.SnapshotEnd(complete=True, void=void)


class SnapshotKeeper:
    """Saves every `every_s` and once more at the end. Owned by one event loop.

    A file that cannot be written costs a warning, once for each kind of trouble, and warmth after
    the next start.
    """

    def __init__(self, path: Path, every_s: float, conductor: Conductor, views: Views) -> None:
        self._path = path
        self._every_s = every_s
        self._conductor = conductor
        self._views = views
        self._complained = ""
        self.saved = 0
        """How often it was written."""

    async def run(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(self._every_s)
            await self.save()

    async def save(self) -> None:
        try:
            await save_snapshot(self._path, self._conductor, self._views)
        except (OSError, KVStoreError) as error:
            if self._complained != type(error).__name__:
                _LOG.warning("the conductor's snapshot was not written: %s", error)
            self._complained = type(error).__name__
            return
        self._complained = ""
        self.saved += 1

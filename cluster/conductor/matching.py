"""How long a prefix of a prompt each worker can use, from who holds its blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from cluster.conductor.holders import NOBODY, Holders, Slot, bits


class TierBlocks(NamedTuple):
    """Blocks of a worker's usable prefix, by the fastest tier that has each."""

    device: int = 0
    host: int = 0
    disk: int = 0

    @property
    def total(self) -> int:
        return self.device + self.host + self.disk


_NOTHING = TierBlocks()


class PrefixGroup(NamedTuple):
    """Workers whose prefixes are alike."""

    workers: int
    """Bit set."""
    blocks: TierBlocks


class Match(NamedTuple):
    groups: Sequence[PrefixGroup]
    """All candidates with a prefix of at least one block, each in one group."""
    on_nodes: int
    """Leading blocks that some node, whichever, has in its host or disk tier."""

    @property
    def prefixes(self) -> Mapping[Slot, TierBlocks]:
        """One by one."""
        return {slot: blocks for workers, blocks in self.groups for slot in bits(workers)}


class Walk:
    """Follows the candidates along a prompt, in groups of those that had the same fate so far.

    Costs something only where the holders change, and then as much as there are groups: few, for
    most candidates have nothing beyond a shared beginning.
    """

    __slots__ = ("_ended", "_groups", "_holders", "_on_nodes", "_since", "_usable", "_workers_of")

    def __init__(self, candidates: int, workers_of: Mapping[Slot, int]) -> None:
        self._workers_of = workers_of
        self._groups = [PrefixGroup(candidates, _NOTHING)]
        """As of the block from which on `_usable` holds."""
        self._since = 0
        self._holders = NOBODY
        self._usable = 0, 0, 0
        """Who can use these blocks, for each tier."""
        self._ended: list[PrefixGroup] = []
        self._on_nodes: int | None = None

    def step(self, position: int, holders: Holders) -> bool:
        """From `position` on blocks are held thus. False when nobody's prefix can grow further."""
        if holders == self._holders:
            return True
        if position:
            self._advance(position)
        self._holders = holders
        expected, device, hosts, disks = holders
        in_device = expected | device
        in_host = self._workers(hosts) if hosts else 0
        in_disk = self._workers(disks) if disks else 0
        self._usable = in_device, in_host, in_disk
        if self._on_nodes is None:
            if hosts or disks:
                return True
            self._on_nodes = position
        anybody = in_device | in_host | in_disk
        return any(workers & anybody for workers, _ in self._groups)

    def end(self, position: int) -> Match:
        """The walk ended before `position`."""
        self._advance(position)
        for group in self._groups if position else ():
            self._ended.append(group)
        return Match(self._ended, position if self._on_nodes is None else self._on_nodes)

    def _advance(self, position: int) -> None:
        """To the end of what is held alike."""
        blocks, since = position - self._since, self._since
        in_device, in_host, in_disk = self._usable
        groups = []
        for rest, (device, host, disk) in self._groups:
            if workers := rest & in_device:
                groups.append(PrefixGroup(workers, TierBlocks(device + blocks, host, disk)))
                rest ^= workers
            if workers := rest & in_host:
                groups.append(PrefixGroup(workers, TierBlocks(device, host + blocks, disk)))
                rest ^= workers
            if workers := rest & in_disk:
                groups.append(PrefixGroup(workers, TierBlocks(device, host, disk + blocks)))
                rest ^= workers
            if rest and since:
                self._ended.append(PrefixGroup(rest, TierBlocks(device, host, disk)))
        self._groups, self._since = groups, position

    def _workers(self, nodes: int) -> int:
        workers = 0
        for node in bits(nodes):
            workers |= self._workers_of.get(node, 0)
        return workers

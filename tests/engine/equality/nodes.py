"""Nodes of the store, reached through their sockets."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kvstore.client.loop_thread import LoopThread
from kvstore.client.sync import SyncClient
from kvstore.core.hashing import block_hashes
from kvstore.core.ids import BlockKeys, LayoutFingerprint
from kvstore.node.config import NodeConfig
from kvstore.node.daemon import Node
from kvstore.node.statistics import ManagerStatistics
from kvstore.tiers.base import TierKind

DEVICE, HOST, DISK, REMOTE = TierKind.DEVICE, TierKind.HOST, TierKind.DISK, TierKind.REMOTE
DEADLINE_S = 60.0
_POLL_S = 0.003
_OTHER_LAYOUT = LayoutFingerprint(bytes(16))
_NUMBERS = itertools.count()


def wait_until(holds: Callable[[], bool]) -> None:
    """For what nothing tells of."""
    for _ in range(int(DEADLINE_S / _POLL_S)):
        if holds():
            return
        threading.Event().wait(_POLL_S)
    raise AssertionError("it did not come to that")


class StoreNode:
    """A node on an event loop of its own."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        folder.mkdir()
        values = {"arena_folder": str(folder), "host": "16MiB", "node_id": folder.name} | settings
        self._loop = LoopThread(f"node-{folder.name}")
        self._node = Node(NodeConfig.model_validate(values))
        self._loop.run(self._node.start())
        self.endpoint = self._node.zmq_endpoint
        self.client = SyncClient.connect(self.endpoint, client_name="test")

    def wait_for(self, keys: Sequence[BlockKeys], *, tier: TierKind) -> None:
        """Until it knows all of these blocks in that tier, here or (REMOTE) at its peer."""
        for part in keys:
            wait_until(partial(self._knows, part, tier))

    def wait_until(self, holds: Callable[[ManagerStatistics], bool]) -> None:
        wait_until(lambda: holds(self._node.store.manager.statistics()))

    def drop_from_host(self, keys: Sequence[BlockKeys]) -> None:
        """As eviction does: what is on disk is there only."""

        async def drop() -> None:
            manager, host = self._node.store.manager, self._node.store._host
            for part in keys:
                dropped = host.drop(list(part))
                assert len(dropped) == len(part)
                manager._replicas.lost(HOST, dropped)

        self._loop.run(drop())

    def fill_host(self) -> None:
        """Write other blocks, as many as the host tier has room for, twice; what goes to disk of
        them is there afterwards."""
        size, demotion = 64 << 10, self._node.store.manager._demotion
        assert demotion is not None
        for _ in range(2 * self._node.config.host // size // 4):
            hashes = block_hashes(bytes(32), [next(_NUMBERS) for _ in range(4)], 1)
            keys = BlockKeys(_OTHER_LAYOUT, hashes)
            self.client.put(keys, [bytes(size)] * len(hashes), deadline_s=DEADLINE_S)
            self._loop.run(demotion.queue.wait_idle(DEADLINE_S))

    def remove(self, keys: Sequence[BlockKeys]) -> None:
        for part in keys:
            assert self.client.remove(part) == len(part)

    def close(self) -> None:
        self.client.close()
        self._loop.run(self._node.stop())
        self._loop.stop()

    def _knows(self, keys: BlockKeys, tier: TierKind) -> bool:
        if tier is DISK:
            disk = self._node.store._disk
            assert disk is not None
            return all(key in disk for key in keys)
        found = self.client.match(keys, remote=tier is REMOTE)
        return len(found) == len(keys) and set(found.tiers) <= {tier}


@dataclass(frozen=True)
class Nodes:
    near: StoreNode
    far: StoreNode
    """Another host's: it pulls what it lacks from `near`."""
    disk: StoreNode
    """With a small host tier above its disk."""
    quiet: StoreNode
    """Serves nobody but one test at a time."""

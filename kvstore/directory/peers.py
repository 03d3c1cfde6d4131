"""What a node knows of the others by listening to their block events."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import zmq
import zmq.asyncio

from kvstore.core.errors import ConfigurationError
from kvstore.core.ids import BlockKeys, NodeId
from kvstore.directory.base import NodeRecord, Replica
from kvstore.directory.heartbeat import HEARTBEAT_TIME_S
from kvstore.directory.memory import sweep
from kvstore.directory.peer import Describe, Peer
from kvstore.directory.state import DirectoryState
from kvstore.events.base import EventSink, Inventory
from kvstore.events.null import NullEventSink
from kvstore.events.sockets import Secure

__all__ = ["Describe", "PeerEventsView"]

_LOG = logging.getLogger(__name__)

_SOCKETS_MAX = 16_384
"""Two a peer at most, and that only while it replays."""
_ASKING_MAX = 16


class PeerEventsView:
    """Implements `ClusterView` without a server: it follows the events of each peer.

    The endpoints may be the same list on every node: a node finds itself on it and passes on. Peers
    may come, go and come back at any time. Memory: what all peers hold, about 120 bytes a block.
    `locate` is a look into memory; it never waits.
    """

    def __init__(
        self,
        peers: Sequence[str],
        describe: Describe,
        *,
        secure: Secure | None = None,
        silence_s: float = HEARTBEAT_TIME_S,
    ) -> None:
        """`peers` are endpoints of the verbs; `secure` is for the sockets of their events.
        Raises ConfigurationError for one that is none."""
        self.sink: EventSink = NullEventSink()
        self._endpoints = tuple(dict.fromkeys(peers))
        for endpoint in self._endpoints:
            _check(endpoint)
        self._describe = describe
        self._secure = secure
        self._silence_s = silence_s
        self._state = DirectoryState()
        self._roster = _Roster()
        self._context: zmq.asyncio.Context | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, own: NodeRecord, inventory: Inventory) -> None:
        assert self._context is None, "started twice"
        self._context = zmq.asyncio.Context()
        self._context.set(zmq.MAX_SOCKETS, _SOCKETS_MAX)
        asking = asyncio.Semaphore(_ASKING_MAX)
        self._roster.own = own
        for endpoint in self._endpoints:
            peer = Peer(
                endpoint,
                self._describe,
                self._roster,
                self._state,
                self._context,
                asking,
                self._silence_s,
                self._secure,
            )
            self._tasks.append(asyncio.create_task(peer.run()))
        self._tasks.append(asyncio.create_task(self._sweep_for_ever()))

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._context is not None:
            self._context.destroy(linger=0)
        self._tasks, self._context = [], None

    def nodes(self) -> Mapping[NodeId, NodeRecord]:
        return MappingProxyType(self._roster.nodes)

    async def locate(self, keys: BlockKeys, *, deadline_s: float) -> list[Sequence[Replica]]:
        return self._state.locate(keys)

    async def _sweep_for_ever(self) -> None:
        while True:
            await sweep(self._state)
            await asyncio.sleep(self._silence_s)

    def __repr__(self) -> str:
        return f"PeerEventsView({len(self._roster.nodes)} of {len(self._endpoints)} peers)"


class _Roster:
    def __init__(self) -> None:
        self.own: NodeRecord | None = None
        self.nodes: dict[NodeId, NodeRecord] = {}
        self._claimed: set[NodeId] = set()

    def claim(self, record: NodeRecord) -> bool:
        assert self.own is not None, "started"
        if record.node_id == self.own.node_id:
            if record.boot_id != self.own.boot_id:
                _LOG.warning(
                    "another node at %s is called %r too; give each its own node.node_id",
                    record.zmq_endpoint,
                    record.node_id,
                )
            return False
        if record.node_id in self._claimed:
            return False
        self._claimed.add(record.node_id)
        return True

    def show(self, record: NodeRecord) -> None:
        if record.node_id not in self.nodes:
            _LOG.info("peer %s at %s is here", record.node_id, record.zmq_endpoint)
        self.nodes[record.node_id] = record

    def lose(self, record: NodeRecord) -> None:
        if record.node_id in self.nodes:
            _LOG.warning("peer %s is silent: its blocks are forgotten", record.node_id)

    def dismiss(self, record: NodeRecord) -> None:
        self._claimed.discard(record.node_id)
        self.nodes.pop(record.node_id, None)


def _check(endpoint: str) -> None:
    scheme, _, address = endpoint.partition("://")
    if scheme not in ("tcp", "ipc", "grpc") or not address:
        raise ConfigurationError(
            f"node.peers: cannot use {endpoint!r}: give tcp://host:port, ipc:///path or "
            "grpc://host:port"
        )

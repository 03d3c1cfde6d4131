"""A store node: the store of one host, served over ZeroMQ and gRPC."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from functools import partial

from kvstore.client.describe import describe
from kvstore.core.ids import NodeId
from kvstore.directory.base import ClusterView, NodeRecord
from kvstore.directory.open import open_view
from kvstore.events.base import EventSink
from kvstore.events.publisher import EventPublisher
from kvstore.events.tee import TeeSink
from kvstore.node.config import NodeConfig
from kvstore.node.host_id import this_host
from kvstore.node.keys import server_keys
from kvstore.node.servers import NodeServers
from kvstore.node.store import LocalStore
from kvstore.transports.advertise import reachable
from kvstore.transports.security.curve import Admit
from kvstore.transports.security.keys import ServerKeys, load_client_keys


class Node:
    """One store node on the running event loop.

    `start` → `stop`. `start` raises ConfigurationError for whatever in `config` cannot be used
    (address taken, disk path not writable, arena larger than memory...) and then leaves nothing
    behind. `stop` drains: no new writes, queued blocks go to disk for a bounded time, calls in
    flight are answered. A node is started once; for a restart make another.
    """

    def __init__(
        self,
        config: NodeConfig,
        *,
        sink: EventSink | None = None,
        view: ClusterView | None = None,
    ) -> None:
        """`sink` takes the block events instead of a publisher of the node's own, which then is not
        there. `view` knows the other nodes, instead of the one that `config` asks for; the node
        starts and stops it."""
        self.config = config
        self.epoch = time.time_ns()
        """Differs, and grows, on every start. Also known as boot id."""
        self._sink = sink
        self._publisher: EventPublisher | None = None
        self._view = view
        self._store: LocalStore | None = None
        self._servers: NodeServers | None = None

    async def start(self) -> None:
        assert self._store is None, "started once"
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Idempotent."""
        if self._view is not None:
            await self._view.stop()
        if self._store is not None:
            await self._store.drain()
        if self._servers is not None:
            await self._servers.stop()
        if self._store is not None:
            await self._store.stop()
        if self._publisher is not None:
            await self._publisher.stop()

    @property
    def zmq_endpoint(self) -> str:
        assert self._servers is not None, "started"
        return self._servers.zmq_endpoint

    @property
    def grpc_address(self) -> str:
        assert self._servers is not None, "started"
        return self._servers.grpc_address

    @property
    def bulk_endpoint(self) -> str:
        assert self._servers is not None, "started"
        return self._servers.bulk_endpoint

    @property
    def event_endpoint(self) -> str:
        """Where block events are published; empty where a sink takes them."""
        endpoint = self._publisher.event_endpoint if self._publisher else ""
        return reachable(endpoint, self.config.advertise_host)

    @property
    def replay_endpoint(self) -> str:
        endpoint = self._publisher.replay_endpoint if self._publisher else ""
        return reachable(endpoint, self.config.advertise_host)

    @property
    def store(self) -> LocalStore:
        assert self._store is not None, "started"
        return self._store

    async def _start(self) -> None:
        keys = server_keys(self.config)
        if self._sink is None:
            self._publisher = self._make_publisher(keys)
        sink = self._sink or self._publisher
        assert sink is not None
        if self._view is None:
            self._view = self._open_view()
        sink = TeeSink(sink, self._view.sink)
        # Off the loop: opening a large disk tier reads the headers of all its segments.
        self._store = await asyncio.to_thread(
            LocalStore,
            self.config,
            sink,
            self.epoch,
            view=self._view,
            last_event_sequence=self._sequence,
        )
        if self._publisher is not None:
            await self._publisher.start()
        await self._store.start()
        service = self._store.service
        self._servers = NodeServers(self.config, keys, service, self._store.manager.bulk)
        await self._servers.start()
        service.record = self._record()
        await self._view.start(service.record, self._store.inventory)

    def _open_view(self) -> ClusterView:
        config = self.config
        own_keys = load_client_keys(config.credentials, "node.credentials")
        return open_view(
            config.directory,
            config.peer_endpoints,
            describe=partial(describe, keys=own_keys),
            secure=own_keys.secure,
            namespace=config.directory_namespace,
        )

    def _record(self) -> NodeRecord:
        return NodeRecord(
            node_id=NodeId(self.config.node_id),
            boot_id=self.epoch,
            host_id=this_host(),
            zmq_endpoint=self.zmq_endpoint,
            grpc_address=self.grpc_address,
            event_endpoint=self.event_endpoint,
            replay_endpoint=self.replay_endpoint,
        )

    def _make_publisher(self, keys: ServerKeys) -> EventPublisher:
        return EventPublisher(
            self.config.node_id,
            self.epoch,
            self.config.event_endpoint,
            self.config.replay_endpoint,
            lambda: self.store.inventory(),
            secure=keys.secure(Admit.PEERS),
        )

    def _sequence(self) -> int:
        return self._publisher.sequence if self._publisher else 0

    def __repr__(self) -> str:
        return f"Node({self.config.node_id!r}, epoch {self.epoch})"


async def serve(config: NodeConfig, ready: Callable[[Node], None]) -> None:
    """Run a node until SIGTERM or SIGINT, then stop it. Calls `ready` once it serves."""
    node = Node(config)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await node.start()
    try:
        ready(node)
        await stop.wait()
    finally:
        await node.stop()

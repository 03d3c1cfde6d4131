"""A store node: the store of one host, served over ZeroMQ and gRPC."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from typing import cast

from kvstore.events.base import EventSink
from kvstore.events.publisher import EventPublisher
from kvstore.node.config import NodeConfig
from kvstore.node.store import LocalStore
from kvstore.transports.grpc.server import GrpcServer
from kvstore.transports.methods import StreamReader, StreamWriter
from kvstore.transports.zmq.server import ZmqServer
from kvstore.wire.v1 import node_pb2

SERVICE = node_pb2.DESCRIPTOR.services_by_name["NodeService"]


class Node:
    """One store node on the running event loop.

    `start` → `stop`. `start` raises ConfigurationError for whatever in `config` cannot be used
    (address taken, disk path not writable, arena larger than memory...) and then leaves nothing
    behind. `stop` drains: no new writes, queued blocks go to disk for a bounded time, calls in
    flight are answered. A node is started once; for a restart make another.
    """

    def __init__(self, config: NodeConfig, *, sink: EventSink | None = None) -> None:
        """`sink` takes the block events instead of a publisher of the node's own, which then is not
        there."""
        self.config = config
        self.epoch = time.time_ns()
        """Differs, and grows, on every start. Also known as boot id."""
        self._sink = sink
        self._publisher = self._make_publisher() if sink is None else None
        self._store: LocalStore | None = None
        self._zmq: ZmqServer | None = None
        self._grpc: GrpcServer | None = None

    async def start(self) -> None:
        assert self._store is None, "started once"
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Idempotent."""
        if self._store is not None:
            await self._store.drain()
        for server in (self._zmq, self._grpc):
            if server is not None:
                await server.stop()
        if self._store is not None:
            await self._store.stop()
        if self._publisher is not None:
            await self._publisher.stop()

    @property
    def zmq_endpoint(self) -> str:
        assert self._zmq is not None, "started"
        return self._zmq.endpoint

    @property
    def grpc_address(self) -> str:
        assert self._grpc is not None, "started"
        return self._grpc.endpoint

    @property
    def event_endpoint(self) -> str:
        """Where block events are published; empty where a sink takes them."""
        return self._publisher.event_endpoint if self._publisher else ""

    @property
    def replay_endpoint(self) -> str:
        return self._publisher.replay_endpoint if self._publisher else ""

    @property
    def store(self) -> LocalStore:
        assert self._store is not None, "started"
        return self._store

    async def _start(self) -> None:
        sink = self._sink or self._publisher
        assert sink is not None
        # Off the loop: opening a large disk tier reads the headers of all its segments.
        self._store = await asyncio.to_thread(
            LocalStore, self.config, sink, self.epoch, last_event_sequence=self._sequence
        )
        if self._publisher is not None:
            await self._publisher.start()
        await self._store.start()
        service = self._store.service
        self._grpc = GrpcServer(
            SERVICE,
            service.handlers(),
            self.config.grpc_address,
            readers={"Write": cast(StreamReader, service.write)},
            writers={"Read": cast(StreamWriter, service.read)},
        )
        await self._grpc.start()
        service.grpc_port = self._grpc.port
        self._zmq = ZmqServer(SERVICE, service.handlers(), self.config.zmq_endpoint)
        await self._zmq.start()

    def _make_publisher(self) -> EventPublisher:
        return EventPublisher(
            self.config.node_id,
            self.epoch,
            self.config.event_endpoint,
            self.config.replay_endpoint,
            lambda: self.store.inventory(),
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

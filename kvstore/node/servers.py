"""The doors of a node: verbs over ZeroMQ, gRPC and a Unix socket, bytes over ZeroMQ and gRPC."""

from __future__ import annotations

import asyncio
from typing import cast

from kvstore.node.bulk import BulkAccess
from kvstore.node.config import NodeConfig
from kvstore.node.service import NodeService
from kvstore.transports.advertise import reachable
from kvstore.transports.base import Handler
from kvstore.transports.grpc.server import GrpcServer
from kvstore.transports.methods import StreamReader, StreamWriter
from kvstore.transports.security.curve import Admit
from kvstore.transports.security.keys import ServerKeys
from kvstore.transports.unix.server import UnixServer
from kvstore.transports.zmq.bulk_server import ZmqBulkServer
from kvstore.transports.zmq.message_memory import keep_message_memory
from kvstore.transports.zmq.server import ZmqServer
from kvstore.wire.v1 import node_pb2

SERVICE = node_pb2.DESCRIPTOR.services_by_name["NodeService"]


class NodeServers:
    """`start` → `stop`. `start` raises ConfigurationError for an address that cannot be used; call
    `stop` then, too. Endpoints are as others reach them, once started."""

    def __init__(
        self, config: NodeConfig, keys: ServerKeys, service: NodeService, bulk: BulkAccess
    ) -> None:
        self._advertise_host = config.advertise_host
        self._service = service
        self._grpc = GrpcServer(
            SERVICE,
            service.handlers(),
            config.grpc_address,
            keys=keys,
            readers={"Write": cast(StreamReader, service.write)},
            writers={"Read": cast(StreamWriter, service.read)},
        )
        secure = keys.secure(Admit.UNEXPIRED)
        self._bulk = ZmqBulkServer(bulk, config.bulk_endpoint, secure=secure)
        self._unix = UnixServer(SERVICE, _session_handlers(service), service.prompt_handlers())
        self._zmq = ZmqServer(SERVICE, service.handlers(), config.zmq_endpoint, keys=keys)

    async def start(self) -> None:
        """Clients come in last, and are told of all the other ways."""
        await self._grpc.start()
        self._service.grpc_port = self._grpc.port
        keep_message_memory()
        self._bulk.start()
        self._service.bulk_port = self._bulk.port
        await self._unix.start()
        self._service.local_endpoint = self._unix.endpoint
        await self._zmq.start()

    async def stop(self) -> None:
        """Calls in flight are answered. Idempotent."""
        for server in (self._unix, self._zmq, self._grpc):
            await server.stop()
        await asyncio.to_thread(self._bulk.stop)

    @property
    def zmq_endpoint(self) -> str:
        return reachable(self._zmq.endpoint, self._advertise_host)

    @property
    def grpc_address(self) -> str:
        return reachable(self._grpc.endpoint, self._advertise_host)

    @property
    def bulk_endpoint(self) -> str:
        return reachable(self._bulk.endpoint, self._advertise_host)


def _session_handlers(service: NodeService) -> dict[str, Handler]:
    """What a session may ask for once it is open: opening one is for who shows credentials."""
    return {name: call for name, call in service.handlers().items() if name != "OpenSession"}

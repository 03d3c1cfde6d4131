"""The five kinds of process of a cluster behind one interface, for Ray actors and plain processes.

Nodes and workers also register with the conductor, if their settings name one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

from cluster.conductor.config import ConductorConfig
from cluster.gateway.config import GatewayConfig
from kvstore.node.config import NodeConfig
from model_runner.config import WorkerConfig

Kind = Literal["conductor", "node", "prefill", "decode", "gateway"]
ServiceConfig = ConductorConfig | NodeConfig | WorkerConfig | GatewayConfig


class Service(Protocol):
    """Belongs to one event loop. Started once, then stopped."""

    async def start(self) -> None:
        """Returns when it serves. Raises a KVStoreError that says what to do."""

    async def stop(self) -> None:
        """Idempotent, also after a failed start. Bounded in time."""

    @property
    def addresses(self) -> dict[str, str]:
        """Where it listens, by the names of the settings. Once started."""


class Hosted:
    """A server that registers nowhere; `addresses` are attributes of it."""

    def __init__(self, server: Any, attributes: Sequence[str]) -> None:
        self._server = server
        self._attributes = attributes

    async def start(self) -> None:
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop()

    @property
    def addresses(self) -> dict[str, str]:
        return {name: str(getattr(self._server, name)) for name in self._attributes}


def make_service(kind: Kind, config: ServiceConfig) -> Service:
    """The service of that kind, not yet started. Imports only what this kind needs."""
    match kind, config:
        case "conductor", ConductorConfig():
            from cluster.membership.server import ConductorServer

            return Hosted(ConductorServer(config), ("address",))
        case "gateway", GatewayConfig():
            from cluster.gateway.app import Gateway

            return Hosted(Gateway(config), ("base_url",))
        case "node", NodeConfig():
            from cluster.launch.node_member import NodeMember

            return NodeMember(config)
        case ("prefill" | "decode") as worker_kind, WorkerConfig():
            from cluster.launch.worker_member import WorkerMember

            return WorkerMember(worker_kind, config)
    raise AssertionError(f"{kind} is not configured by {type(config).__name__}")

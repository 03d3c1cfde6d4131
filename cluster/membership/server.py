"""The conductor as a process: its host, and its service over gRPC."""

from __future__ import annotations

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from cluster.conductor.config import ConductorConfig
from cluster.conductor.types import ConductorStatistics
from cluster.membership.host import ConductorHost
from cluster.membership.local import LocalConductor
from cluster.membership.methods import SERVICE, ConductorMethods
from cluster.membership.service import service_handler
from kvstore.core.errors import ConfigurationError
from kvstore.transports.grpc.server import listen, make_server
from kvstore.transports.security.exposure import check_grpc
from kvstore.transports.security.keys import ServerKeys, load_server_keys

_STOP_GRACE_S = 1.0


class ConductorServer:
    """`start` → `stop` on one event loop; everything inside runs on that loop.

    Soft state only: see `ConductorHost`.
    """

    def __init__(self, config: ConductorConfig) -> None:
        self._config = config
        self._host = ConductorHost(config)
        self._address = config.grpc_address
        self._server: grpc.aio.Server | None = None

    @property
    def address(self) -> str:
        """host:port with the real port, once started (or unix:PATH)."""
        return self._address

    @property
    def methods(self) -> ConductorMethods:
        """Once started."""
        return self._host.methods

    def verbs(self) -> LocalConductor:
        """For callers in this process, on this loop. Once started."""
        return self._host.verbs()

    def statistics(self) -> ConductorStatistics:
        return self._host.statistics()

    async def start(self) -> None:
        """Raises ConfigurationError if the address or the keys cannot be used; nothing is left open
        then."""
        assert self._server is None, "started twice"
        keys = load_server_keys(self._config.security, "conductor.security")
        server = self._server = make_server(keys)
        try:
            self._address = _listen(server, self._config.grpc_address, keys)
            check_grpc(
                "conductor.grpc_address",
                self._address,
                keys,
                allow_insecure=self._config.allow_insecure,
            )
            await self._host.start()
            server.add_generic_rpc_handlers((service_handler(self._host.methods),))
            await _add_standard_services(server)
            await server.start()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Answer what is in flight for at most a second, then close. Idempotent."""
        server, self._server = self._server, None
        if server is not None:
            await server.stop(_STOP_GRACE_S)
        await self._host.stop()


def _listen(server: grpc.aio.Server, address: str, keys: ServerKeys) -> str:
    """Bind; returns the address with its real port."""
    host, separator, _ = address.rpartition(":")
    try:
        port = listen(server, address, keys) if separator else 0
    except ConfigurationError as error:
        raise _unusable(address) from error
    if port == 0:
        raise _unusable(address)
    return address if address.startswith("unix:") else f"{host}:{port}"


def _unusable(address: str) -> ConfigurationError:
    return ConfigurationError(
        f"the conductor cannot listen on {address!r}; choose a free host:port, or port 0 for any"
    )


async def _add_standard_services(server: grpc.aio.Server) -> None:
    status = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(status, server)
    for name in ("", SERVICE.full_name):
        await status.set(name, health_pb2.HealthCheckResponse.SERVING)
    names = (SERVICE.full_name, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)

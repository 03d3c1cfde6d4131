"""The conductor as a process: its service, its clock, its view of every member."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from cluster.conductor.conductor import Conductor, make_policy
from cluster.conductor.config import ConductorConfig
from cluster.conductor.types import ConductorStatistics
from cluster.membership.service import ConductorService
from cluster.membership.views import Views
from cluster.wire.v1 import conductor_pb2 as pb
from cluster.wire.v1.conductor_pb2_grpc import add_ConductorServiceServicer_to_server
from kvstore.core.errors import ConfigurationError
from kvstore.transports.grpc.server import listen, make_server
from kvstore.transports.security.exposure import check_grpc
from kvstore.transports.security.keys import ServerKeys, load_client_keys, load_server_keys

_LOG = logging.getLogger(__name__)

_SERVICE = pb.DESCRIPTOR.services_by_name["ConductorService"].full_name
_STOP_GRACE_S = 1.0
_SWEEPS_PER_TTL = 5


class ConductorServer:
    """`start` → `stop` on one event loop; everything inside runs on that loop.

    Holds soft state only: after a restart members register again by themselves, within seconds,
    and their snapshots rebuild the index.
    """

    def __init__(self, config: ConductorConfig) -> None:
        self._config = config
        self._conductor = Conductor(
            make_policy(config.policy), time.monotonic, member_ttl_s=config.member_ttl_ms / 1000
        )
        self._address = config.grpc_address
        self._views: Views | None = None
        self._server: grpc.aio.Server | None = None
        self._sweeper: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        """host:port with the real port, once started (or unix:PATH)."""
        return self._address

    def statistics(self) -> ConductorStatistics:
        return self._conductor.statistics()

    async def start(self) -> None:
        """Raises ConfigurationError if the address or the keys cannot be used; nothing is left open
        then."""
        assert self._server is None, "started twice"
        keys = load_server_keys(self._config.security, "conductor.security")
        own_keys = load_client_keys(self._config.credentials, "conductor.credentials")
        server = self._server = make_server(keys)
        self._views = Views(own_keys.secure)
        try:
            self._address = _listen(server, self._config.grpc_address, keys)
            check_grpc(
                "conductor.grpc_address",
                self._address,
                keys,
                allow_insecure=self._config.allow_insecure,
            )
            service = ConductorService(self._conductor, self._views, self._config.member_ttl_ms)
            add_ConductorServiceServicer_to_server(service, server)  # type: ignore[no-untyped-call]
            await _add_standard_services(server)
            await server.start()
        except BaseException:
            await self.stop()
            raise
        self._sweeper = asyncio.create_task(self._sweep(self._views))

    async def stop(self) -> None:
        """Answer what is in flight for at most a second, then close. Idempotent."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._sweeper
        if self._server is not None:
            await self._server.stop(_STOP_GRACE_S)
        if self._views is not None:
            await self._views.close_all()
        self._sweeper = self._server = self._views = None

    async def _sweep(self, views: Views) -> None:
        while True:
            await asyncio.sleep(self._config.member_ttl_ms / 1000 / _SWEEPS_PER_TTL)
            for member_id in self._conductor.expire():
                _LOG.warning("member %s was silent for too long: forgotten", member_id)
                await views.close(member_id)


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
    await status.set(_SERVICE, health_pb2.HealthCheckResponse.SERVING)
    names = (_SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)

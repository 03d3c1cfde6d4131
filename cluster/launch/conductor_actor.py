"""The conductor as a Ray actor: detached, restarted by Ray, found by its name."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from typing import Any

import ray

from cluster.conductor.config import ConductorConfig
from cluster.membership.methods import REQUEST_TYPES
from cluster.membership.server import ConductorServer
from kvstore.core.errors import ConfigurationError, KVStoreError

_LOG = logging.getLogger(__name__)

NAMESPACE = "kvstore"
CALLS_MAX = 1024
"""At a time; further ones wait in Ray."""

_RETRY_S = 1.0


class HostedConductor:
    """The process side. All methods run on the actor's event loop, and so does `__init__`, when Ray
    starts the actor and each time when it starts it again."""

    def __init__(self, config: ConductorConfig) -> None:
        self._server = ConductorServer(config)
        self._starting = asyncio.ensure_future(self._start())

    async def address(self) -> str:
        """Of its gRPC service. Raises what the conductor's start raises."""
        await asyncio.shield(self._starting)
        return self._server.address

    async def call(self, method: str, packed: bytes) -> bytes:
        """One method of ConductorService."""
        await asyncio.shield(self._starting)
        request = REQUEST_TYPES[method].FromString(packed)
        response = await self._server.methods.call(method, request)
        answer: bytes = response.SerializeToString()
        return answer

    async def stop(self) -> None:
        """Keeps what is worth it."""
        await asyncio.wait([self._starting])
        await self._server.stop()

    async def _start(self) -> None:
        try:
            await self._server.start()
        except KVStoreError:
            if not ray.get_runtime_context().was_current_actor_reconstructed:
                raise
            # Its address is not free again yet, say. Nobody looks after a restart but Ray.
            _LOG.exception("the conductor did not start again")
            await asyncio.sleep(_RETRY_S)
            os._exit(1)


def find_conductor(name: str) -> Any | None:
    """A handle of the actor; None if there is none of that name."""
    try:
        return ray.get_actor(name, namespace=NAMESPACE)
    except ValueError:
        return None


def create_conductor(name: str, config: ConductorConfig) -> Any:
    """A handle of a new actor on this host, or of the one of that name if there is one by now.

    Detached: it outlives this process. Each restart is on this host, at the same address.
    """
    here = ray.get_runtime_context().get_node_id()
    strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(here, soft=False)
    actor = ray.remote(HostedConductor).options(
        name=name,
        namespace=NAMESPACE,
        get_if_exists=True,
        lifetime="detached",
        max_restarts=-1,
        max_concurrency=CALLS_MAX,
        num_cpus=0,
        scheduling_strategy=strategy,
    )
    return actor.remote(_pinned(config))


def _pinned(config: ConductorConfig) -> ConductorConfig:
    """With a port of its own in place of port 0: members look for it there after a restart."""
    host, _, port = config.grpc_address.rpartition(":")
    if port != "0":
        return config
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.bind((host.strip("[]"), 0))
            address = f"{host}:{probe.getsockname()[1]}"
    except OSError as error:
        raise ConfigurationError(
            f"conductor.grpc_address {config.grpc_address}: {error.strerror or error}; name an"
            " address of this host"
        ) from error
    return config.model_copy(update={"grpc_address": address})
